"""What all kinds of vocabulary share when they are fitted: checks of the sample, its normalisation, and the artifact.

Conventions: frames (frame, mel) float32 in the front end's units; see `pipeline/artifacts/vocabulary.py` for the rest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.vocabulary import VOCABULARY, special_tokens
from pipeline.errors import CorpusError
from pipeline.vocabulary.assignment import nearest_codes, normalise_frames
from pipeline.vocabulary.sampling import FrameSample
from pipeline.vocabulary.statistics import distortion, summarise

# In ln(power) or dB. A mel filter so narrow that no FFT bin falls into it gives one number for ever (128 mel bins at
# n_fft 512 and 16 kHz have one); dividing by its deviation would blow rounding noise up to the size of music.
SMALLEST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Fit:
    """A vocabulary as it comes out of fitting."""

    codebooks: np.ndarray  # (codebook, code, feature) float32
    bands: list[list[int]]  # [from, to) of each codebook
    normalisation: str  # standardise, l2 or none
    mean: np.ndarray  # (mel,) float32
    scale: np.ndarray  # (mel,) float32
    objective: list[float]  # at each iteration: mean over frames of the squared distance to their codes


def check_frames(frames: np.ndarray) -> None:
    """Raise CorpusError unless the sampled frames are finite and differ from each other."""
    if not np.isfinite(frames).all():
        bad = int((~np.isfinite(frames).all(axis=1)).sum())
        raise CorpusError(
            f"vocabulary sample: expected finite frames, found {bad} of {len(frames)} with NaN or infinity; the front end "
            "floors the logarithm, so the stored frames are damaged: rerun the stage spectrogram"
        )
    if (np.ptp(frames, axis=0) <= SMALLEST_DEVIATION).all():
        raise CorpusError(
            f"vocabulary sample: expected frames that differ, found {len(frames)} equal ones (digital silence?); look at "
            "the training clips with `sonolex why CLIP`"
        )


def fit_normalisation(frames: np.ndarray, normalisation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale, each (mel,) float32, fitted on the sample; constant bands keep scale 1."""
    num_mels = frames.shape[1]
    if normalisation == "none":
        return np.zeros(num_mels, np.float32), np.ones(num_mels, np.float32)
    mean = frames.mean(axis=0, dtype=np.float64)
    if normalisation == "l2":  # one scale for all bands, or a gain would change the direction of z
        return mean.astype(np.float32), np.ones(num_mels, np.float32)
    deviation = frames.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > SMALLEST_DEVIATION, deviation, 1.0).astype(np.float32)


def count_distinct(features: np.ndarray) -> int:
    """Count the distinct rows of (frame, feature) float32, by a 64-bit hash of their bits."""
    rows = np.ascontiguousarray(features + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
    multipliers = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    return len(np.unique((rows * multipliers).sum(axis=1, dtype=np.uint64)))


def write_vocabulary(
    path: Path, fit: Fit, sample: FrameSample, *, kind: str, seed: int, fold: str, spectrogram: Spectrogram
) -> dict[str, Any]:
    """Write a fitted vocabulary with counts and statistics over its sample, and return the facts of the fit."""
    z = normalise_frames(sample.frames, fit.mean, fit.scale, fit.normalisation)
    tokens = nearest_codes(z, fit.codebooks, fit.bands)
    size = fit.codebooks.shape[1]
    counts = np.stack([np.bincount(words, minlength=size) for words in tokens]).astype(np.int64)
    facts_of_fit = {
        "objective": [round(value, 6) for value in fit.objective],
        "distortion": round(distortion(z, tokens, fit.codebooks, fit.bands), 6),
        **summarise(counts, frame_rate=spectrogram.frame_rate),
    }
    facts = {
        "kind": kind,
        "size": size,
        "num_codebooks": len(fit.codebooks),
        "normalisation": fit.normalisation,
        "bands": fit.bands,
        **special_tokens(size),
        "fold": fold,
        "role": "train",
        "front_end": spectrogram.facts,
        "seed": seed,
        "sample": sample.facts,
        "fit": facts_of_fit,
    }
    arrays = {"codebooks": fit.codebooks, "mean": fit.mean, "scale": fit.scale, "counts": counts}
    VOCABULARY.write(path, arrays, facts)
    return facts_of_fit
