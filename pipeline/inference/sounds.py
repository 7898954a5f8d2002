"""Waveforms of sounds that are given as files or as arrays, as a front end reads them.

Conventions: an array is (sample,) or (channel, sample), float in [-1, 1] or integer, whose full scale becomes 1; channels
are averaged, and any rate is resampled, as for files (`pipeline/spectrogram/decoding.py`). A waveform is (sample,) float32.
"""

import os
from pathlib import Path
from typing import TypedDict

import numpy as np

from pipeline.artifacts.spectrogram import Mix, SpectrogramMetadata
from pipeline.errors import SonolexError
from pipeline.spectrogram.decoding import decode, prepare_waveform
from pipeline.spectrogram.mixing import mix_channels
from pipeline.spectrogram.sources import BadClip

_MOST_CHANNELS = 64  # an array with more is taken for one whose axes are swapped

MAX_SECONDS = 600.0  # of a sound that is predicted as a whole

ARRAY = "array"  # the name of a sound that is no file, in messages


class Reading(TypedDict):
    """How a front end's sounds are read."""

    sample_rate: int  # Hz
    min_samples: int  # of the shortest
    mix: Mix
    allow_silence: bool


def reading_of(metadata: SpectrogramMetadata, min_samples: int) -> Reading:
    """Return how the sounds of frames with this metadata are read, as the training clips were."""
    return {
        "sample_rate": metadata["sample_rate"],
        "min_samples": min_samples,
        "mix": metadata.get("mix", "mean"),
        "allow_silence": metadata.get("silence") == "keep",
    }


def read_file(
    path: Path, *, sample_rate: int, min_samples: int, mix: Mix, allow_silence: bool, max_seconds: float
) -> np.ndarray:
    """Return the waveform of a whole file. Raises BadClip as `decode` does."""
    require_readable(path)
    try:
        return decode(
            path,
            start=0.0,
            duration=0.0,
            sample_rate=sample_rate,
            max_duration=max_seconds,
            min_samples=min_samples,
            mix=mix,
            allow_silence=allow_silence,
        )
    except BadClip as error:
        if error.reason != "too_long":
            raise
        raise BadClip(error.reason, f"{error.message}; predict it in windows, such as --window 5") from None


def require_readable(path: Path) -> None:
    """Raise BadClip for an existing file that this user may not read, of which libraries say `System error`."""
    if path.exists() and not os.access(path, os.R_OK):
        raise BadClip("unreadable", f"{path}: expected permission to read it, found none; try `chmod u+r`")


def mix_array(samples: np.ndarray, mix: Mix) -> np.ndarray:
    """Return an array as mono float32 (sample,). Raises SonolexError for a shape or a type that no sound has."""
    return _mono(_scaled(samples), mix)


def require_rate(rate: int | None) -> int:
    """Return the rate of an array. Raises SonolexError where there is none."""
    if rate is None or rate <= 0:
        found = "none" if rate is None else rate
        raise SonolexError(
            f"{ARRAY}: rate: expected the samples per second of the array, found {found}; pass rate=16000"
        )
    return rate


def read_array(
    samples: np.ndarray, rate: int | None, *, sample_rate: int, min_samples: int, mix: Mix, allow_silence: bool
) -> np.ndarray:
    """Return the waveform of an array of `rate` Hz.

    Raises SonolexError for a shape, a type or a rate that no sound has, BadClip for samples that cannot be used.
    """
    rate, values = require_rate(rate), mix_array(samples, mix)
    sizes = {"sample_rate": sample_rate, "min_samples": min_samples}
    return prepare_waveform(values, rate, **sizes, where=ARRAY, allow_silence=allow_silence)


def _scaled(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    if samples.dtype.kind != "f":
        raise SonolexError(f"{ARRAY}: expected floats in [-1, 1] or signed integers, found {samples.dtype}")
    return samples.astype(np.float32, copy=False)


def _mono(samples: np.ndarray, mix: Mix) -> np.ndarray:
    channels = samples.shape[0] if samples.ndim == 2 else 1
    if samples.ndim not in (1, 2) or not 1 <= channels <= _MOST_CHANNELS:
        advice = "; transpose it" if samples.ndim == 2 else ""
        raise SonolexError(
            f"{ARRAY}: expected the shape (sample,) or (channel, sample) with at most {_MOST_CHANNELS} channels, "
            f"found {samples.shape}{advice}"
        )
    if samples.ndim == 2 and mix != "mean":
        return mix_channels(samples.T, mix)
    return samples if samples.ndim == 1 else np.asarray(samples.mean(axis=0, dtype=np.float32))
