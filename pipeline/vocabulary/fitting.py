"""Fit of any kind of vocabulary: checks of the sample, its features, the kind's codebooks, and the artifact.

Conventions: frames (frame, mel) float32 in the front end's units; see `pipeline/artifacts/vocabulary.py` for the rest.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.vocabulary import (
    SPECTRA,
    Codebooks,
    FeatureMetadata,
    FeatureSpace,
    HiddenStateMetadata,
    MergeMetadata,
    NamedArray,
    VocabularyMetadata,
    special_tokens,
    write_vocabulary_store,
)
from pipeline.errors import CorpusError, ParamsError
from pipeline.execution.threads import single_threaded
from pipeline.vocabulary.discriminants import LabelledTokens, fit_group_lda
from pipeline.vocabulary.features import (
    DIRECTIONS,
    frame_levels,
    normalise_frames,
    slopes,
    stack_windows,
    window_features,
)
from pipeline.vocabulary.rebuilding import decode_frames
from pipeline.vocabulary.registry import KINDS, VocabularyParams
from pipeline.vocabulary.sampling import FrameSample
from pipeline.vocabulary.settings import CommonParams, LdaParams
from pipeline.vocabulary.statistics import distortion, summarise

# In ln(power) or dB. A mel filter so narrow that no FFT bin falls into it gives a constant (128 mel bins at
# n_fft 512 and 16 kHz have one); dividing by its deviation would blow rounding noise up to the size of music.
SMALLEST_STD = 1e-3

_SMALLEST_VARIANCE = 1e-9  # of a component, over that of the first; below it is rounding noise
_ROWS_PER_BLOCK = 1 << 14  # bounds the float64 copies


@dataclass(frozen=True)
class Fit:
    """A vocabulary as it comes out of fitting."""

    space: FeatureSpace
    kind: str  # of `KINDS`, that encodes and decodes
    codebooks: Codebooks
    exact: dict[str, Any] | None = None  # what Lloyd's algorithm over all training frames changed, where it was run


@dataclass(frozen=True)
class Merges:
    """Byte-pair merges learnt on top of a fit, see `pipeline/vocabulary/merging.py`."""

    pairs: np.ndarray  # (merge, 2) int32; empty without BPE
    metadata: MergeMetadata  # how much was merged, and what on; empty without BPE


@dataclass(frozen=True)
class FittedNetwork:
    """Network whose hidden states a vocabulary was fitted on."""

    folder: Path
    metadata: HiddenStateMetadata
    spectra: np.ndarray  # (codebook, code, mel) float32, the mean frame of each token: `pipeline/vocabulary/spectra.py`


@single_threaded()
def fit_vocabulary(params: VocabularyParams, sample: FrameSample) -> Fit:
    """Fit the kind of vocabulary that `params` describe on frames of training clips.

    Raises ParamsError where params and frames do not go together, and CorpusError when frames are not finite, all alike, or
    fewer distinct ones than tokens where these are clustered.
    """
    space, features = fit_space(params, sample)
    return Fit(space, params.kind, KINDS[params.kind].fit(params, features))


def fit_space(params: CommonParams, sample: FrameSample) -> tuple[FeatureSpace, np.ndarray]:
    """Fit normalisation, scale of the slopes, and projection; return them with the sample's features (token, feature)."""
    num_mels = sample.windows.shape[2]
    if num_mels % params.groups:
        divisors = ", ".join(str(number) for number in range(1, num_mels + 1) if num_mels % number == 0)
        raise ParamsError(
            f"vocabularies.*: kind {params.kind}: expected a number of groups that divides {_width(params)} {num_mels}, "
            f"found {params.groups}; choose one of {divisors}"
        )
    check_frames(sample)
    mean, scale = fit_normalisation(sample.frames, params.normalisation)
    space = FeatureSpace(
        normalisation=params.normalisation,
        deltas=params.features.deltas,
        stack=params.features.stack,
        groups=params.groups,
        mean=mean,
        scale=scale,
        delta_scale=np.ones(num_mels, np.float32),
        centre=np.empty(0, np.float32),
        components=np.empty((0, 0), np.float32),
        context=params.features.context,
    )
    windows = normalise_windows(space, sample.windows)
    if space.deltas:
        space = replace(space, delta_scale=_fit_delta_scale(slopes(windows, space.deltas), params.normalisation))
    features = stack_windows(space, windows)
    if params.features.pca is not None:
        centre, components = fit_pca(features, params.features.pca)
        space = replace(space, centre=centre, components=components)
    elif params.features.lda is not None:
        space = _discriminant_space(params.features.lda, space, features, sample)
    else:
        return space, features
    return space, window_features(space, windows)


def _width(params: CommonParams) -> str:
    """Return what the number of values of a frame, or of a hidden state, is called in messages."""
    return "the front end's n_mels" if params.hidden_states is None else "the width of the network's layer"


def _discriminant_space(
    params: LdaParams, space: FeatureSpace, features: np.ndarray, sample: FrameSample
) -> FeatureSpace:
    """Return the space with the discriminants of each group, side by side, fitted on stacked features (token, feature)."""
    from scipy.linalg import block_diag

    assert sample.targets is not None
    labelled = LabelledTokens(np.repeat(np.arange(len(sample.counts)), list(sample.counts.values())), sample.targets)
    groups = fit_group_lda(params, np.split(features, space.groups, axis=1), labelled)
    return replace(
        space,
        centre=np.concatenate([group.centre for group in groups]),
        components=block_diag(*(group.components for group in groups)),
        inverse=block_diag(*(group.inverse for group in groups)),
    )


def check_frames(sample: FrameSample) -> None:
    """Raise CorpusError unless the sampled frames are finite and differ from each other."""
    frames = sample.windows.reshape(-1, sample.windows.shape[2])
    if not np.isfinite(frames).all():
        bad = int((~np.isfinite(frames).all(axis=1)).sum())
        raise CorpusError(
            f"vocabulary sample: expected finite frames, found {bad} of {len(frames)} with NaN or infinity; the front end "
            "floors the logarithm, so the stored frames are damaged: rerun the stage spectrogram"
        )
    if (np.ptp(frames, axis=0) <= SMALLEST_STD).all():
        raise CorpusError(
            f"vocabulary sample: expected frames that differ, found {len(frames)} equal ones (digital silence?); look at "
            "the training clips with `sonolex why CLIP`"
        )


def fit_normalisation(frames: np.ndarray, normalisation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale, each (mel,) float32, fitted on the sample; constant bands keep scale 1."""
    num_mels = frames.shape[1]
    if normalisation in ("none", "unit"):
        return np.zeros(num_mels, np.float32), np.ones(num_mels, np.float32)
    mean = frames.mean(axis=0, dtype=np.float64)
    if normalisation == "l2":  # one scale for all bands, or a gain would change the direction of z
        return mean.astype(np.float32), np.ones(num_mels, np.float32)
    std = frames.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > SMALLEST_STD, std, 1.0).astype(np.float32)


def normalise_windows(space: FeatureSpace, windows: np.ndarray) -> np.ndarray:
    """Normalise windows (token, frame, mel) frame by frame; same shape, float32."""
    frames = windows.reshape(-1, windows.shape[2])
    return normalise_frames(frames, space.mean, space.scale, space.normalisation).reshape(windows.shape)


def _fit_delta_scale(slope: np.ndarray, normalisation: str) -> np.ndarray:
    """Return what slopes (token, frame, mel) are divided by, so that they weigh as much as the frames themselves: (mel,).

    Their deviation in each band; with DIRECTIONS, where all bands have one scale, their mean length; with "none" one.
    """
    num_mels = slope.shape[2]
    if normalisation == "none":
        return np.ones(num_mels, np.float32)
    square = np.square(slope, dtype=np.float64).mean(axis=(0, 1))
    if normalisation in DIRECTIONS:
        square = np.full(num_mels, square.sum())
    size = np.sqrt(square)
    return np.where(size > SMALLEST_STD, size, 1.0).astype(np.float32)


def fit_pca(features: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centre (feature,) and whitening components (component, feature), float32, largest variance first.

    Raises ParamsError when the features (token, feature) do not vary in so many directions.
    """
    centre = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(features), _ROWS_PER_BLOCK):
        rows = features[start : start + _ROWS_PER_BLOCK] - centre
        covariance += rows.T @ rows / len(features)
    variances, axes = np.linalg.eigh(covariance)  # ascending
    variances, axes = variances[::-1], axes[:, ::-1].T
    usable = int((variances > _SMALLEST_VARIANCE * variances[0]).sum())
    if num_components > usable:
        raise ParamsError(
            f"vocabularies.*.features.pca: expected at most {usable} dimensions, in so many the {features.shape[1]} "
            f"features of the sample vary, found {num_components}"
        )
    axes = axes[:num_components]
    # An axis may point either way: let its largest entry be positive.
    axes = axes * np.sign(axes[np.arange(num_components), np.abs(axes).argmax(axis=1)])[:, None]
    components = axes / np.sqrt(variances[:num_components, None])
    return centre.astype(np.float32), components.astype(np.float32)


@single_threaded()
def write_vocabulary(
    path: Path,
    fit: Fit,
    sample: FrameSample,
    merges: Merges,
    params: CommonParams,
    *,
    name: str,
    fold: str,
    spectrogram: Spectrogram,
    network: FittedNetwork | None = None,
) -> dict[str, Any]:
    """Write a fitted vocabulary with counts and statistics over its sample, and return the metadata of the fit.

    `name` is its entry of `vocabularies`; `network` is that of the hidden states which it was fitted on.
    """
    space, codebooks = fit.space, fit.codebooks
    windows = normalise_windows(space, sample.windows)
    tokens = KINDS[fit.kind].encode(codebooks, window_features(space, windows))
    z = windows[:, space.margin : space.margin + space.stack].reshape(-1, windows.shape[2])
    size = codebooks.codes.shape[1]
    counts = np.stack([np.bincount(row, minlength=size) for row in tokens]).astype(np.int64)
    metadata_of_fit = {
        "objective": [round(value, 6) for value in codebooks.objective],
        "distortion": round(distortion(z, decode_frames(space, fit.kind, codebooks, tokens)), 6),
        **summarise(
            counts,
            frame_rate=spectrogram.frame_rate
            / space.stack
            / (network.metadata["frames_per_state"] if network is not None else 1),
        ),
        **({"exact": fit.exact} if fit.exact else {}),
    }
    special = special_tokens(merges.metadata["num_tokens"] if merges.metadata else size)
    metadata: VocabularyMetadata = {
        "kind": fit.kind,
        "additive": params.additive,
        "num_tokens": size,
        "num_codebooks": len(codebooks.codes),
        "normalisation": space.normalisation,
        "features": _feature_metadata(space),
        "bands": codebooks.bands,
        "bpe": merges.metadata,
        "padding_token": special["padding_token"],
        "mask_token": special["mask_token"],
        "class_token": special["class_token"],
        "fold": fold,
        "role": "train",
        "front_end": spectrogram.metadata,
        "seed": params.seed,
        "sample": sample.metadata,
        "fit": metadata_of_fit,
        SETTINGS: {f"vocabularies.{name}": params.model_dump(mode="json")},
    }
    if network is not None:
        metadata["hidden_states"] = network.metadata
    arrays = {name: getattr(space, name) for name in ("mean", "scale", "delta_scale", "centre", "components")}
    if len(space.inverse):
        arrays["inverse"] = space.inverse
    levels = token_levels(space, sample, tokens, counts)
    arrays |= {"codebooks": codebooks.codes, "levels": levels, "counts": counts, "merges": merges.pairs}
    own, folder = dict(codebooks.own), None
    if network is not None:
        own[SPECTRA], folder = NamedArray(("codebook", "code", "mel"), network.spectra), network.folder
    write_vocabulary_store(path, arrays, own, metadata, folder)
    return metadata_of_fit


def _feature_metadata(space: FeatureSpace) -> FeatureMetadata:
    metadata: FeatureMetadata = {"deltas": space.deltas, "stack": space.stack, "groups": space.groups}
    return {**metadata, "context": space.context} if len(space.inverse) else metadata


def token_levels(space: FeatureSpace, sample: FrameSample, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of what DIRECTIONS took from the frames of each token: (codebook, code, 2), level and length.

    `tokens` (codebook, token) are the sample's, `counts` (codebook, code) how often each occurs; tokens that do not have the
    mean over all. Level 0 and length 1 with another normalisation.
    """
    levels = np.zeros((*counts.shape, 2), dtype=np.float32)
    levels[:, :, 1] = 1
    if space.normalisation not in DIRECTIONS:
        return levels
    taken = frame_levels(sample.frames, space.mean, space.scale, space.normalisation)
    taken = taken.reshape(-1, space.stack, 2).mean(axis=1)
    for number, row in enumerate(tokens):
        for column in range(2):
            sums = np.bincount(row, taken[:, column], minlength=counts.shape[1])
            levels[number, :, column] = np.where(
                counts[number] > 0, sums / np.maximum(counts[number], 1), taken[:, column].mean()
            )
    return levels
