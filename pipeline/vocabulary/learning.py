"""Fit of a vocabulary on training clips: the sample, the fit on it, and Lloyd's algorithm over all frames where `exact`.

Where hidden states of a network are clustered, these are the "frames" here (`pipeline/vocabulary/hidden_states.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.vocabulary.assignment import base_tokens
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.exact import refine
from pipeline.vocabulary.fitting import Fit, FittedNetwork, fit_vocabulary
from pipeline.vocabulary.hidden_states import StateReader
from pipeline.vocabulary.registry import VocabularyParams
from pipeline.vocabulary.sampling import FRAMES_PER_BATCH, ClipFrames, FrameSample, draw_sample
from pipeline.vocabulary.spectra import mean_spectra


def learn(
    params: VocabularyParams, reader: ClipFrames, training_clips: Sequence[str], targets: Mapping[str, np.ndarray]
) -> tuple[FrameSample, Fit]:
    """Return the sample of the clips' frames that `params` ask for, and the vocabulary fitted on it.

    `targets` (class,) of the clips are read by `features.lda` alone; see `pipeline/vocabulary/discriminants.py`.
    Raises what `draw_sample` and `fit_vocabulary` raise.
    """
    sample = draw_sample(
        reader,
        training_clips,
        sample_frames=params.sample_frames,
        seed=params.seed,
        stack=params.features.stack,
        margin=params.features.margin,
    )
    if params.features.lda:
        sample = replace(sample, targets=np.stack([targets[clip] for clip in sample.counts]))
    fit = fit_vocabulary(params, sample)
    if params.exact_iterations:
        fit = refine(fit, reader, training_clips, iterations=params.exact_iterations)
    return sample, fit


def describe_network(fit: Fit, states: StateReader, clip_ids: Sequence[str]) -> FittedNetwork:
    """Return the network whose hidden states were clustered, with the mean frame of each token over these clips."""
    shape = fit.codebooks.codes.shape
    frames_per_token = fit.space.stack * states.metadata["frames_per_state"]
    _, spectra = mean_spectra(_with_frames(fit, states, clip_ids), (shape[0], shape[1]), frames_per_token)
    return FittedNetwork(states.folder, states.metadata, spectra)


def _with_frames(fit: Fit, states: StateReader, clip_ids: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the base tokens (codebook, token) of each clip, and its frames (frame, mel)."""
    for batch in clip_batches(clip_ids, states.frames.num_frames, frames_per_batch=FRAMES_PER_BATCH):
        read = states.read(batch)
        tokens = base_tokens(fit.space, fit.kind, fit.codebooks, read, what="training clips")
        yield from zip(tokens, states.frames.read(batch), strict=True)
