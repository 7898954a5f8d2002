"""The mel spectrogram in dB: analytic truth, then equality with librosa and torchaudio."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_waveform

from pipeline.errors import ParamsError
from pipeline.params import validate_params
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.mel import MelFrontEnd, MelParams, mel_filters
from pipeline.spectrogram.scaled_mel import ScaledMelFrontEnd, ScaledMelParams

# As danavery/audio-tokens has it.
AUDIO_TOKENS = {
    "kind": "mel",
    "sample_rate": 22050,
    "n_fft": 512,
    "win_length": 512,
    "hop_length": 128,
    "center": True,
    "int16": False,
    "exponent": 2,
    "n_mels": 64,
    "f_min": 0.0,
    "f_max": 11025.0,
    "mel_scale": "htk",
    "triangles": "hertz",
    "norm": "none",
    "log": "decibel",
    "log_offset": 0.0,
    "log_floor": -100.0,
}
SLANEY = {"n_fft": 1024, "win_length": 800, "hop_length": 300, "n_mels": 40, "f_min": 30.0, "f_max": 10000.0}
SETTINGS = [{}, SLANEY | {"mel_scale": "slaney", "norm": "slaney"}, SLANEY | {"norm": "slaney"}]


def _front_end(**changed: Any) -> MelFrontEnd:
    return MelFrontEnd(MelParams(**(AUDIO_TOKENS | changed)))


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 5000.0])
def test_a_tone_peaks_in_the_band_that_holds_it(hertz: float) -> None:
    front_end = _front_end(n_fft=1024, win_length=1024, n_mels=32)
    frames = front_end.log_mel(make_waveform("tone", sample_rate=22050, frequency=hertz))[8:-8]
    weights = mel_filters(front_end.params)[:, round(hertz * 1024 / 22050)]
    assert set(frames.argmax(axis=1)) == {int(weights.argmax())}


def test_the_powers_of_a_tone_add_up_to_what_parseval_says() -> None:
    """HTK triangles without norm add up to 1 over the bands, so the bands together hold the tone's whole power."""
    frames = _front_end(n_mels=20).log_mel(make_waveform("tone", sample_rate=22050, frequency=2000.0))[8:-8]
    window = np.hanning(513)[:-1]
    power = 0.5**2 / 4 * 512 * (window**2).sum()  # amplitude 0.5, one side of the spectrum
    np.testing.assert_allclose((10 ** (frames / 10)).sum(axis=1), power, rtol=0.01)


def test_silence_lies_on_the_floor() -> None:
    np.testing.assert_allclose(_front_end().log_mel(np.zeros(4000, dtype=np.float32)), -100.0, rtol=1e-6)
    np.testing.assert_allclose(_front_end(log_floor=-80.0).log_mel(np.zeros(4000, dtype=np.float32)), -80.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(256, 0), (257, 3), (383, 3), (384, 4), (385, 4), (22050, 173), (220500, 1723)]
)
def test_windows_are_centred(num_samples: int, num_frames: int) -> None:
    front_end = _front_end()
    assert front_end.num_frames(num_samples) == num_frames
    assert front_end.log_mel(np.ones(num_samples, dtype=np.float32)).shape == (num_frames, 64)


def test_a_batch_gives_the_bits_of_its_clips() -> None:
    waveforms = np.stack([make_waveform("noise", 2.0, 22050, seed=seed) for seed in range(3)])
    batch = _front_end().log_mel(waveforms)
    for waveform, frames in zip(waveforms, batch, strict=True):
        np.testing.assert_array_equal(_front_end().log_mel(waveform), frames)


def test_bands_without_a_bin_are_named() -> None:
    assert _front_end().empty_bands == []
    empty = _front_end(n_mels=200).empty_bands
    assert empty
    frames = _front_end(n_mels=200).log_mel(make_waveform("noise", sample_rate=22050))
    assert set(np.flatnonzero((frames == frames[0, empty[0]]).all(axis=0))) == set(empty)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"win_length": 513}, "win_length 513 must be at most n_fft 512"),
        ({"f_max": 11026.0}, "f_max 11026.0 <= half of sample_rate 22050"),
        ({"mel_scale": "bark"}, "mel_scale"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(MelParams, AUDIO_TOKENS | changed, "spectrogram.front_end")
    assert message in str(caught.value)


def _librosa_arguments(params: MelParams) -> dict[str, Any]:
    norm = None if params.norm == "none" else params.norm
    bands = {"n_mels": params.n_mels, "fmin": params.f_min, "fmax": params.f_max, "norm": norm}
    return {"sr": params.sample_rate, "n_fft": params.n_fft, "htk": params.mel_scale == "htk"} | bands


def _librosa(waveform: np.ndarray, params: MelParams) -> np.ndarray:
    librosa = pytest.importorskip("librosa")
    power = librosa.feature.melspectrogram(
        y=waveform,
        win_length=params.win_length,
        hop_length=params.hop_length,
        pad_mode="reflect",
        **_librosa_arguments(params),
    )
    return np.asarray(10 * np.log10(np.maximum(power, 10 ** (params.log_floor / 10)))).T


def _torchaudio(waveform: np.ndarray, params: MelParams) -> np.ndarray:
    torch, transforms = pytest.importorskip("torch"), pytest.importorskip("torchaudio.transforms")
    mel = transforms.MelSpectrogram(
        params.sample_rate,
        params.n_fft,
        params.win_length,
        params.hop_length,
        params.f_min,
        params.f_max,
        n_mels=params.n_mels,
        norm=None if params.norm == "none" else params.norm,
        mel_scale=params.mel_scale,
    )
    return np.asarray(transforms.AmplitudeToDB("power")(mel(torch.from_numpy(waveform))).numpy()).T


def _assert_equal(frames: np.ndarray, expected: np.ndarray) -> None:
    assert frames.shape == expected.shape
    audible = expected > expected.max() - 60  # below, float32 rounds differently in each
    np.testing.assert_allclose(frames[audible], expected[audible], atol=0.01)
    np.testing.assert_allclose(frames, expected, atol=1.0)


@pytest.mark.parametrize("changed", SETTINGS)
def test_filters_equal_librosa(changed: dict[str, Any]) -> None:
    librosa = pytest.importorskip("librosa")
    params = _front_end(**changed).params
    np.testing.assert_allclose(mel_filters(params), librosa.filters.mel(**_librosa_arguments(params)), atol=1e-7)


@pytest.mark.parametrize("kind", ["chirp", "clicks", "noise"])
@pytest.mark.parametrize("changed", SETTINGS)
def test_equals_librosa_and_torchaudio(kind: str, changed: dict[str, Any]) -> None:
    front_end = _front_end(**changed)
    waveform = make_waveform(kind, 1.0, 22050, frequency=8000.0) + make_waveform("noise", 1.0, 22050, seed=1) * 0.01
    frames = front_end.log_mel(waveform)
    _assert_equal(frames, _librosa(waveform, front_end.params))
    _assert_equal(frames, _torchaudio(waveform, front_end.params))


@pytest.mark.slow
def test_equals_librosa_and_torchaudio_on_esc10(esc10_root: Path) -> None:
    front_end = _front_end()
    for path in sorted((esc10_root / "audio").glob("*.ogg"))[::8]:
        waveform = decode(path, start=0, duration=0, sample_rate=22050, max_duration=10)
        frames = front_end.log_mel(waveform)
        _assert_equal(frames, _librosa(waveform, front_end.params))
        _assert_equal(frames, _torchaudio(waveform, front_end.params))


def test_scaled_mel_is_mel_between_the_clips_smallest_and_largest_value() -> None:
    scaled, waveform = (
        ScaledMelFrontEnd(ScaledMelParams(**(AUDIO_TOKENS | {"kind": "scaled_mel"}))),
        make_waveform("noise"),
    )
    decibels, frames = _front_end().log_mel(waveform), scaled.log_mel(waveform)
    assert (frames.min(), frames.max(), frames.dtype) == (0, 1, np.float32)
    np.testing.assert_allclose(frames, (decibels - decibels.min()) / np.ptp(decibels), atol=1e-6)
    np.testing.assert_allclose(scaled.log_mel(waveform * 0.1), frames, atol=1e-4)  # a gain changes nothing
    np.testing.assert_array_equal(scaled.log_mel(np.stack([waveform, waveform[::-1]]))[0], frames)
    assert not scaled.log_mel(np.zeros(8000, np.float32)).any()
