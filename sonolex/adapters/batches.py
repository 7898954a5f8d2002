"""Batches of waveforms as the evaluations give them: embedders for them, and their preparation.

A model is named by the folder of a bundle, or `FOLDER#LAYER`; an empty name stands for texture statistics, which need no
model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import SonolexError
from pipeline.inference.embedding import Embedder, TimeSteps, open_embedder_of
from pipeline.spectrogram.decoding import prepare_waveform
from pipeline.spectrogram.sources import BadClip

_SOUND = "a sound of the evaluation"
_AT_ONCE = 16  # clips


def open_named(name: str) -> Embedder:
    """Return the embedder of `FOLDER`, `FOLDER#LAYER`, or for an empty name that of texture statistics."""
    folder, _, layer = name.partition("#")
    return open_embedder_of(Path(folder) if folder else None, layer or None)


def embed_batch(embedder: Embedder, sounds: np.ndarray, rate: int) -> np.ndarray:
    """Return the embeddings (clip, dim) of sounds (clip, sample) of one length and `rate` Hz. Silence is a sound."""
    waveforms = prepare(embedder, sounds, rate)
    parts = [waveforms[start : start + _AT_ONCE] for start in range(0, len(waveforms), _AT_ONCE)]
    try:
        return np.concatenate([embedder.clips(part, _SOUND) for part in parts])
    except BadClip as error:
        raise SonolexError(str(error)) from None


def embed_steps(embedder: Embedder, sounds: np.ndarray, rate: int) -> TimeSteps:
    """Return the embeddings along time (clip, step, dim) of sounds (clip, sample) of one length and `rate` Hz."""
    waveforms = prepare(embedder, sounds, rate)
    starts = range(0, len(waveforms), _AT_ONCE)
    try:
        parts = [embedder.steps(waveforms[start : start + _AT_ONCE], _SOUND) for start in starts]
    except BadClip as error:
        raise SonolexError(str(error)) from None
    return TimeSteps(parts[0].seconds, np.concatenate([part.values for part in parts]))


def prepare(embedder: Embedder, sounds: np.ndarray | Sequence[np.ndarray], rate: int) -> np.ndarray:
    """Return waveforms at the embedder's rate (clip, sample) float32; those that are too short are padded with silence."""
    try:
        waveforms = [
            prepare_waveform(
                np.asarray(sound, dtype=np.float32),
                rate,
                sample_rate=embedder.sample_rate,
                min_samples=0,
                where=_SOUND,
                allow_silence=True,
            )
            for sound in sounds
        ]
    except BadClip as error:
        raise SonolexError(str(error)) from None
    missing = max(0, embedder.min_samples - len(waveforms[0]))
    return np.pad(np.stack(waveforms), ((0, 0), (0, missing)))
