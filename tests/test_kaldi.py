"""The Kaldi filterbank: analytic truth, then equality with torchaudio's on synthetic and real clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_waveform

from pipeline.errors import ParamsError
from pipeline.params import validate_params
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.spectrogram.registry import FRONT_ENDS, FrontEndParams, build_front_end

AST = {
    "kind": "kaldi",
    "sample_rate": 16000,
    "win_length": 400,
    "hop_length": 160,
    "n_fft": 512,
    "n_mels": 128,
    "f_min": 20.0,
    "f_max": 8000.0,
    "pre_emphasis": 0.97,
}


def _front_end(**changed: Any) -> KaldiFrontEnd:
    return KaldiFrontEnd(KaldiParams(**(AST | changed)))


def _band_of(hertz: float, n_mels: int, f_min: float, f_max: float) -> int:
    """Return the band whose triangle has its peak nearest to a frequency, on Kaldi's mel scale."""
    mel = 1127 * np.log1p(np.array([hertz, f_min, f_max]) / 700)
    return round((mel[0] - mel[1]) / ((mel[2] - mel[1]) / (n_mels + 1))) - 1


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 5000.0])
def test_a_tone_peaks_in_the_band_that_holds_it(hertz: float) -> None:
    frames = _front_end(n_mels=40).log_mel(make_waveform("tone", frequency=hertz))
    assert set(frames.argmax(axis=1)) == {_band_of(hertz, 40, 20.0, 8000.0)}


def test_a_tone_twice_as_loud_is_ln_4_higher() -> None:
    tone = make_waveform("tone")
    louder = _front_end().log_mel(tone) - _front_end().log_mel(tone / 2)
    band = _band_of(1000.0, 128, 20.0, 8000.0)
    np.testing.assert_allclose(louder[:, band], np.log(4), atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_and_a_constant_lie_on_the_floor(level: float) -> None:
    front_end = _front_end()
    frames = front_end.log_mel(np.full(16000, level, dtype=np.float32))
    np.testing.assert_allclose(frames, front_end.metadata["log_floor"], rtol=1e-6)
    assert front_end.metadata["log_floor"] == pytest.approx(-15.9424, abs=1e-4)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (561, 2), (16000, 98), (80000, 498)]
)
def test_only_whole_windows_count(num_samples: int, num_frames: int) -> None:
    front_end = _front_end()
    assert front_end.num_frames(num_samples) == num_frames
    if num_samples:
        assert front_end.log_mel(np.ones(num_samples, dtype=np.float32)).shape == (num_frames, 128)


def test_a_batch_gives_the_bits_of_its_clips() -> None:
    waveforms = np.stack([make_waveform("noise", 6.0, seed=seed) for seed in range(3)])
    batch = _front_end().log_mel(waveforms)
    assert batch.shape == (3, 598, 128)
    for waveform, frames in zip(waveforms, batch, strict=True):
        np.testing.assert_array_equal(_front_end().log_mel(waveform), frames)


def test_bands_without_a_bin_are_named_and_stay_on_the_floor() -> None:
    front_end = _front_end()
    assert front_end.empty_bands == [3]
    frames = front_end.log_mel(make_waveform("noise"))
    np.testing.assert_allclose(frames[:, 3], front_end.metadata["log_floor"], rtol=1e-6)
    assert _front_end(n_mels=64).empty_bands == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_fft": 500}, "n_fft 500 must be a power of two, at least win_length 400"),
        ({"n_fft": 256}, "n_fft 256 must be a power of two, at least win_length 400"),
        ({"f_max": 8001.0}, "f_min 20.0 < f_max 8001.0 <= half of sample_rate 16000"),
        ({"f_min": 9000.0}, "f_min 9000.0 < f_max 8000.0"),
        ({"pre_emphasis": 1.5}, "pre_emphasis"),
        ({"hop_lenght": 160}, "did you mean `hop_length`"),
        ({"kind": "gammatone"}, "gammatone"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(FrontEndParams, AST | changed, "spectrogram.front_end")  # type: ignore[type-var]
    assert message in str(caught.value)


def test_kinds_of_the_registry_are_those_of_their_params() -> None:
    assert isinstance(build_front_end(KaldiParams(**AST)), KaldiFrontEnd)  # type: ignore[arg-type]
    for kind, front_end in FRONT_ENDS.items():
        assert front_end.Params.model_fields["kind"].annotation.__args__ == (kind,)


def _torchaudio(waveform: np.ndarray, dtype: str, **changed: Any) -> np.ndarray:
    torch, kaldi = pytest.importorskip("torch"), pytest.importorskip("torchaudio.compliance.kaldi")
    settings = AST | changed
    tensor = torch.from_numpy(waveform).to(getattr(torch, dtype))[None]
    rate = settings["sample_rate"]
    frames = kaldi.fbank(
        tensor - tensor.mean(),
        htk_compat=True,
        sample_frequency=rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=settings["n_mels"],
        dither=0.0,
        frame_length=1000 * settings["win_length"] / rate,
        frame_shift=1000 * settings["hop_length"] / rate,
        low_freq=settings["f_min"],
        high_freq=settings["f_max"],
        preemphasis_coefficient=settings["pre_emphasis"],
    )
    return np.asarray(frames.numpy())


@pytest.mark.parametrize("kind", ["tone", "chirp", "clicks", "noise"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"n_mels": 40, "f_min": 0.0, "pre_emphasis": 0.0},
        {"sample_rate": 8000, "win_length": 200, "hop_length": 80, "n_fft": 256, "n_mels": 64, "f_max": 3800.0},
    ],
)
def test_equals_torchaudio(kind: str, changed: dict[str, Any]) -> None:
    waveform = make_waveform(kind, 1.0, changed.get("sample_rate", 16000), frequency=3000.0)
    waveform = waveform + 1e-3 * make_waveform("noise", 1.0, changed.get("sample_rate", 16000), seed=1)
    frames = _front_end(**changed).log_mel(waveform)
    expected = _torchaudio(waveform, "float64", **changed)
    assert frames.shape == expected.shape
    audible = expected > expected.max(axis=1, keepdims=True) - np.log(1e7)
    np.testing.assert_allclose(frames[audible], expected[audible], atol=0.01)
    np.testing.assert_allclose(frames, expected, atol=0.1)
    np.testing.assert_allclose(frames, _torchaudio(waveform, "float32", **changed), atol=0.1)


@pytest.mark.slow
def test_equals_torchaudio_on_esc10(esc10_root: Path) -> None:
    front_end = _front_end()
    for path in sorted((esc10_root / "audio").glob("*.ogg"))[::4]:
        waveform = decode(path, start=0, duration=0, sample_rate=16000, max_duration=10)
        frames = front_end.log_mel(waveform)
        np.testing.assert_allclose(frames, _torchaudio(waveform, "float32"), atol=0.01)
        np.testing.assert_allclose(frames, _torchaudio(waveform, "float64"), atol=0.01)
