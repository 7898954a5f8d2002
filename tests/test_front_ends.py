"""Front ends beyond log-mel powers: each setting and feature against librosa, torchaudio or NumPy; and log-mel parts."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, make_waveform
from test_mel import AUDIO_TOKENS, SLANEY

from pipeline.errors import ParamsError
from pipeline.params import validate_params
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.log_mel import count_bands, describe_frame, log_mel_part, over_bands
from pipeline.spectrogram.mel import MelFrontEnd, MelParams, mel_filters
from pipeline.spectrogram.registry import FRONT_ENDS, FrontEndParams, build_front_end, recorded_front_end
from pipeline.spectrogram.settings import SpectrogramParams
from tools.compose import compose

STACK = AUDIO_TOKENS | SLANEY | {"kind": "stack", "channels": ["log_mel", "centroid", "chroma", "onset"]}
MFCC = AUDIO_TOKENS | {"kind": "mfcc", "n_mfcc": 20}
SOUND = make_waveform("chirp", 1.0, 22050, frequency=8000.0) + 0.01 * make_waveform("noise", 1.0, 22050, seed=1)


def front_end_of(section: dict[str, Any], **changed: Any) -> FrontEnd:
    return build_front_end(validate_params(FrontEndParams, section | changed, "spectrogram.front_end"))


def iki_section() -> dict[str, Any]:
    """Return the front end of the recipe that has that of the ESC-50 AST of ikiskin."""
    document, _ = compose("esc50+iki_front_end", [], REPOSITORY / "recipes")
    section: dict[str, Any] = json.loads(json.dumps(document["spectrogram"]["front_end"]))
    return section


def audible(expected: np.ndarray, span: float = 60.0) -> np.ndarray:
    return np.asarray(expected > expected.max() - span)


def test_magnitudes_in_decibels_equal_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    mel = {"n_fft": 512, "hop_length": 128, "n_mels": 64, "htk": True, "norm": None, "fmax": 11025.0}
    bands = librosa.feature.melspectrogram(y=SOUND, sr=22050, power=1, pad_mode="reflect", **mel)
    expected = librosa.amplitude_to_db(bands, ref=1.0, amin=1e-5, top_db=None).T
    found = front_end_of(AUDIO_TOKENS, exponent=1).log_mel(SOUND)
    np.testing.assert_allclose(found[audible(expected)], expected[audible(expected)], atol=0.01)


def test_levels_as_natural_logarithms_have_their_units_and_offset() -> None:
    decibels = front_end_of(AUDIO_TOKENS, exponent=1).log_mel(SOUND)
    front_end = front_end_of(AUDIO_TOKENS, exponent=1, log="natural", log_floor=-40.0, log_offset=0.01)
    assert front_end.metadata["units"] == "ln(magnitude)"
    np.testing.assert_allclose(front_end.log_mel(SOUND), np.log(10 ** (decibels / 20) + 0.01), atol=0.01)
    assert front_end.metadata["log_floor"] == pytest.approx(np.log(0.01))
    silence = front_end.log_mel(np.zeros(4000, np.float32))
    np.testing.assert_allclose(silence, front_end.metadata["log_floor"], rtol=1e-5)


def test_the_front_end_of_iki_is_the_one_of_its_equations() -> None:
    """8 kHz as int16, periodic Hann windows of 200 every 80, 512 bins of magnitude, 128 triangles in mel, ln(x + 1e-10)."""
    sound = make_waveform("chirp", 5.0, 8000, frequency=3000.0) + 0.1 * make_waveform("noise", 5.0, 8000, seed=2)
    samples = (sound * 32767).astype(np.int16)
    windows = np.lib.stride_tricks.sliding_window_view(samples, 200)[::80]
    hann = 0.5 * (1 - np.cos(2 * np.pi / 200 * np.arange(200)))
    magnitudes = np.abs(np.fft.rfft(windows * hann, 512))
    mel = 2595 * np.log10(1 + np.linspace(0, 4000, 257) / 700)
    edges = np.linspace(0, mel[-1], 130)[:, None]
    rising, falling = (mel - edges[:-2]) / np.diff(edges, axis=0)[:-1], (edges[2:] - mel) / np.diff(edges, axis=0)[1:]
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[:, 0] = 0
    expected = np.log(magnitudes @ weights.T + 1e-10)

    front_end = front_end_of(iki_section())
    assert isinstance(front_end, MelFrontEnd)
    np.testing.assert_allclose(mel_filters(front_end.params), weights, atol=1e-9)
    found = front_end.log_mel(sound)
    assert found.shape == expected.shape == (498, 128)
    empty = ~weights.any(axis=1)  # bands without a bin
    np.testing.assert_allclose(found[:, ~empty], expected[:, ~empty], atol=0.002)
    np.testing.assert_allclose(found[:, empty], np.log(1e-10), rtol=1e-6)


def test_windows_within_the_clip_need_one_whole_window() -> None:
    front_end = front_end_of(iki_section())
    assert [front_end.num_frames(count) for count in (199, 200, 279, 280, 40000)] == [0, 1, 1, 2, 498]
    assert front_end.min_samples == 200


def test_mfccs_equal_librosa_and_torchaudio() -> None:
    librosa, torch = pytest.importorskip("librosa"), pytest.importorskip("torch")
    transforms = pytest.importorskip("torchaudio.transforms")
    levels, found = front_end_of(AUDIO_TOKENS).log_mel(SOUND), front_end_of(MFCC).log_mel(SOUND)
    np.testing.assert_allclose(found, librosa.feature.mfcc(S=levels.T, n_mfcc=20).T, atol=1e-3)
    mel = {"n_fft": 512, "hop_length": 128, "n_mels": 64, "f_max": 11025.0}
    module = transforms.MFCC(22050, n_mfcc=20, melkwargs=mel)
    module.amplitude_to_DB.top_db = None
    expected = module(torch.from_numpy(SOUND)).numpy().T
    np.testing.assert_allclose(found, expected, atol=0.5, rtol=0.01)  # their quietest bands round otherwise
    metadata = front_end_of(MFCC).metadata
    assert (metadata["n_mels"], metadata["units"]) == (20, "MFCC")
    assert metadata["log_floor"] == pytest.approx(-800)  # sqrt(64) * -100 dB


def test_the_log_mel_part_of_all_mfccs_is_the_log_mel() -> None:
    front_end = front_end_of(MFCC, n_mfcc=64)
    levels = front_end_of(AUDIO_TOKENS).log_mel(SOUND)
    np.testing.assert_allclose(log_mel_part(front_end.log_mel(SOUND), front_end.metadata), levels, atol=1e-3)
    some = front_end_of(MFCC)
    assert log_mel_part(some.log_mel(SOUND), some.metadata).shape == levels.shape
    assert count_bands(some.metadata) == 64
    weights = np.array([[1.0, 3.0, np.nan], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(over_bands(weights, some.metadata)[:, ::63], [[2, 2], [0, 0]])
    assert over_bands(weights, front_end_of(AUDIO_TOKENS).metadata) is weights


def test_the_channels_of_a_stack_equal_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    front_end = front_end_of(STACK)
    frames = front_end.log_mel(SOUND)
    assert frames.shape == (74, 4 * 40)
    log_mel, centroid, chroma, onset = np.split(frames, 4, axis=1)
    np.testing.assert_array_equal(log_mel, front_end_of(AUDIO_TOKENS | SLANEY).log_mel(SOUND))
    arguments = {"n_fft": 1024, "win_length": 800, "hop_length": 300, "pad_mode": "reflect"}
    hertz = librosa.feature.spectral_centroid(y=SOUND, sr=22050, **arguments)[0]
    np.testing.assert_allclose(centroid, np.repeat(hertz[:, None], 40, axis=1), rtol=1e-3)
    classes = librosa.feature.chroma_stft(y=SOUND, sr=22050, tuning=0.0, **arguments)
    np.testing.assert_allclose(chroma, classes[12 * np.arange(40) // 40].T, atol=1e-3)
    strength = librosa.onset.onset_strength(S=log_mel.T, sr=22050, center=False)
    np.testing.assert_allclose(onset, np.repeat(strength[:, None], 40, axis=1), rtol=1e-5)
    assert strength.shape == (74,)
    assert strength[0] == 0


def test_a_stack_of_silence_and_of_a_short_clip_is_finite() -> None:
    front_end = front_end_of(STACK)
    silence = front_end.log_mel(np.zeros(4000, np.float32))
    np.testing.assert_allclose(silence[:, :40], -100, rtol=1e-6)  # dB; logarithms differ between processors
    assert not silence[:, 40:].any()
    assert np.isfinite(front_end.log_mel(SOUND[: front_end.min_samples])).all()
    assert front_end.log_mel(SOUND[:100]).shape == (0, 160)
    batch = np.stack([SOUND, SOUND[::-1]])
    np.testing.assert_array_equal(front_end.log_mel(batch)[0], front_end.log_mel(SOUND))


def test_a_stack_of_one_channel_is_log_mel() -> None:
    metadata = front_end_of(STACK, channels=["log_mel"]).metadata
    assert "channels" not in metadata
    assert (metadata["n_mels"], count_bands(metadata)) == (40, 40)


def test_frames_are_described_with_what_is_drawn() -> None:
    assert describe_frame(front_end_of(AUDIO_TOKENS).metadata) == "64 mel bands"
    assert "40 mel bands in each of the channels log_mel, centroid" in describe_frame(front_end_of(STACK).metadata)
    assert "20 MFCCs of 64 mel bands" in describe_frame(front_end_of(MFCC).metadata)


@pytest.mark.parametrize("kind", ["mel", "scaled_mel"])
def test_artifacts_record_no_setting_that_changes_nothing(kind: str) -> None:
    """Frames, bundles and vocabularies that were made before a setting existed stay as they are, and can be used."""
    front_end = front_end_of(AUDIO_TOKENS, kind=kind)
    recorded = front_end.metadata
    assert not MelParams.unrecorded.keys() & recorded["params"].keys()
    again = recorded_front_end(json.loads(json.dumps(recorded)))
    np.testing.assert_array_equal(again.log_mel(SOUND), front_end.log_mel(SOUND))
    other = front_end_of(AUDIO_TOKENS, kind=kind, exponent=1)
    assert other.metadata["params"]["exponent"] == 1
    np.testing.assert_array_equal(recorded_front_end(other.metadata).log_mel(SOUND), other.log_mel(SOUND))


@pytest.mark.parametrize(
    "changed",
    [
        {"exponent": 1},
        {"int16": True, "log": "natural", "log_floor": -20.0},
        {"center": False, "exponent": 1, "int16": True, "log": "natural", "log_offset": 0.01, "log_floor": -20.0},
        {"kind": "mfcc", "n_mfcc": 40},
    ],
)
def test_a_tone_comes_back_from_frames_at_its_level(changed: dict[str, Any]) -> None:
    front_end = front_end_of(AUDIO_TOKENS, **changed)
    tone = make_waveform("tone", 0.5, 22050, frequency=1000.0)
    again = Inverter(front_end).waveform(log_mel_part(front_end.log_mel(tone), front_end.metadata), seed=0)[2205:8820]
    spectrum = np.abs(np.fft.rfft(again * np.hanning(len(again))))
    assert np.argmax(spectrum) * 22050 / len(again) == pytest.approx(1000, rel=0.05)
    assert np.sqrt((again**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (MFCC | {"n_mfcc": 65}, "n_mfcc 65 must be at most n_mels 64"),
        (MFCC | {"log": "natural"}, "log must be decibel with kind mfcc"),
        (STACK | {"channels": ["chroma", "log_mel"]}, "expected log_mel first"),
        (STACK | {"channels": ["log_mel", "log_mel"]}, "each channel once"),
        (STACK | {"channels": ["log_mel", "flux"]}, "channels"),
        (AUDIO_TOKENS | {"exponent": 3}, "exponent"),
        (AUDIO_TOKENS | {"log_offset": -1.0}, "log_offset"),
    ],
)
def test_a_wrong_setting_is_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate_params(FRONT_ENDS[section["kind"]].Params, section, "spectrogram.front_end")
    assert message in str(caught.value)


def test_steps_of_uint8_are_refused_where_values_have_no_common_range() -> None:
    document, _ = compose(
        "demo", ["spectrogram.front_end.kind=stack", "spectrogram.dtype=uint8"], REPOSITORY / "recipes"
    )
    with pytest.raises(ParamsError, match=r"expected float16 or float32 with front_end.kind stack"):
        validate_params(SpectrogramParams, json.loads(json.dumps(document["spectrogram"])), "spectrogram")
