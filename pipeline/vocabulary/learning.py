"""Fit of a vocabulary on training clips: the sample, the fit on it, and Lloyd's algorithm over all frames where `exact`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.vocabulary.exact import refine
from pipeline.vocabulary.fitting import Fit, fit_vocabulary
from pipeline.vocabulary.registry import VocabularyParams
from pipeline.vocabulary.sampling import ClipFrames, FrameSample, draw_sample


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
