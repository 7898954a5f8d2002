"""Front ends as torch modules compute the frames that the pipeline stores, for waveforms of any length."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_waveform
from test_kaldi import AST
from test_mel import AUDIO_TOKENS, SLANEY

from pipeline.artifacts.spectrogram import CLIP_RANGE, SpectrogramMetadata
from pipeline.errors import SonolexError
from pipeline.params import validate_params
from pipeline.spectrogram.registry import FRONT_ENDS, build_front_end, recorded_front_end
from pipeline.spectrogram.storing import restore, store
from pipeline.spectrogram.torch_front_end import front_end_module

UINT8 = {"dtype": "uint8", "scale": 28 / 255, "offset": -16.0}
FLOAT16 = {"dtype": "float16", "scale": 1.0, "offset": 0.0}
FLOAT32 = {"dtype": "float32", "scale": 1.0, "offset": 0.0}


def stored_as(section: dict[str, Any], storage: dict[str, Any]) -> SpectrogramMetadata:
    """Return the metadata of a spectrogram with this front end and storage."""
    params = validate_params(FRONT_ENDS[section["kind"]].Params, section, "spectrogram.front_end")
    metadata: SpectrogramMetadata = {**build_front_end(params).metadata, **storage}  # type: ignore[typeddict-item]
    return metadata


def frames_of(metadata: SpectrogramMetadata, waveform: np.ndarray) -> np.ndarray:
    """Return the frames of a waveform as a reader restores them."""
    return restore(store(recorded_front_end(metadata).log_mel(waveform), metadata)[0], metadata)


def waveforms(num_samples: int, sample_rate: int) -> list[np.ndarray]:
    """Return noise on a constant, clicks, and a chirp that falls silent."""
    seconds = num_samples / sample_rate
    noise, clicks, chirp = (make_waveform(kind, seconds, sample_rate) for kind in ("noise", "clicks", "chirp"))
    chirp[num_samples // 2 :] = 0
    return [noise + np.float32(0.2), clicks, chirp]


@pytest.mark.parametrize("storage", [FLOAT32, FLOAT16, UINT8], ids=["float32", "float16", "uint8"])
@pytest.mark.parametrize(
    "section",
    [
        AST,
        AST | {"win_length": 333, "hop_length": 100, "n_mels": 40, "pre_emphasis": 0.5},
        AUDIO_TOKENS,
        AUDIO_TOKENS | SLANEY | {"mel_scale": "slaney", "norm": "slaney"},
        AUDIO_TOKENS | {"kind": "scaled_mel"},
        AUDIO_TOKENS | {"center": False, "int16": True, "exponent": 1, "triangles": "mel", "log_offset": 1e-3},
    ],
)
def test_frames_are_those_that_are_stored(section: dict[str, Any], storage: dict[str, Any]) -> None:
    metadata = stored_as(section, storage)
    module = front_end_module(metadata)
    step = {"float32": 0.0, "float16": 2.0**-5, "uint8": 28 / 255}[storage["dtype"]]
    for num_samples in (module.min_samples, 4000, 7777):
        clips = waveforms(num_samples, metadata["sample_rate"])
        found = module(torch.from_numpy(np.stack(clips))).numpy()
        for frames, waveform in zip(found, clips, strict=True):
            expected = frames_of(metadata, waveform)
            assert frames.shape == expected.shape == (module.num_frames(num_samples), metadata["n_mels"])
            # Bands a million times weaker than the clip's loudest hold what float32 rounds away.
            heard = (
                expected
                > expected.max() - 6 * {"ln(power)": np.log(10), "dB": 10, CLIP_RANGE: 1 / 16}[metadata["units"]]
            )
            np.testing.assert_allclose(frames[heard], expected[heard], atol=step + 0.01)
            if step:  # without steps all may be rounded otherwise
                assert (frames != expected)[heard].mean() < 0.02
            assert np.isin(frames, np.float16(frames)).all() or storage is not FLOAT16


def test_silence_lies_on_the_floor() -> None:
    metadata = stored_as(AST, FLOAT32)
    frames = front_end_module(metadata)(torch.full((1, 4000), 0.25))
    np.testing.assert_allclose(frames.numpy(), metadata["log_floor"], rtol=1e-6)


def test_a_front_end_without_a_module_is_named() -> None:
    metadata = stored_as(AST, FLOAT32) | {"front_end": "gammatone"}
    with pytest.raises(
        SonolexError, match=r"front end: expected one of kaldi, mel, .*found gammatone; .*--input frames"
    ):
        front_end_module(metadata)  # type: ignore[arg-type]


def test_mfccs_are_those_that_are_stored() -> None:
    metadata = stored_as(AUDIO_TOKENS | {"kind": "mfcc", "n_mfcc": 20}, FLOAT32)
    clip = waveforms(7777, metadata["sample_rate"])[0]
    found = front_end_module(metadata)(torch.from_numpy(clip[None])).numpy()[0]
    np.testing.assert_allclose(found, frames_of(metadata, clip), atol=0.02)


def test_a_stack_is_exported_from_its_frames_alone() -> None:
    metadata = stored_as(AUDIO_TOKENS | {"kind": "stack", "channels": ["log_mel", "onset"]}, FLOAT32)
    with pytest.raises(SonolexError, match=r"found stack.*--input frames"):
        front_end_module(metadata)
