"""Reconstruction of frames from tokens.

Conventions: tokens (codebook, token) uint16; frames (frame, mel) float32 in the front end's units; z the same, normalised. A
token stands for `stack` frames, so a token sequence gives a multiple of that, the last of which may lie behind the clip's
end.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.vocabulary import FeatureSpace, Vocabulary
from pipeline.vocabulary.bpe import merger_of, separate
from pipeline.vocabulary.features import unstack_features

SEPARABLE = "plain tokens (bpe: null), of one codebook if normalisation is l2"


def rebuild(vocabulary: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """Return the frames (frame, mel) that tokens (codebook, token) stand for: the sum of their codes, each in its band.

    Slopes are dropped, and what PCA left out is its mean. With normalisation "l2" a frame has the mean level and length of
    its tokens in the sample: how loud it was, no token says. Merged tokens stand for all frames of theirs; SonolexError when
    a token sequence of them does not give whole frames.
    """
    space = vocabulary.space
    if vocabulary.merged:
        num_codebooks, size = vocabulary.codebooks.shape[:2]
        base = merger_of(vocabulary.merges, num_codebooks * size).split(tokens[0])
        tokens = separate(base, num_codebooks, size)
    z = decode(space, vocabulary.codebooks, vocabulary.metadata["bands"], tokens)
    if space.normalisation == "l2":
        levels = np.stack([levels[row] for levels, row in zip(vocabulary.levels, tokens, strict=True)]).mean(axis=0)
        level, length = np.repeat(levels, space.stack, axis=0).T[:, :, None]
        z = z * length + level
    frames: np.ndarray = z * space.scale + space.mean
    return frames


def decode(
    space: FeatureSpace, codebooks: np.ndarray, bands: Sequence[Sequence[int]], tokens: np.ndarray
) -> np.ndarray:
    """Return the normalised frames (frame, mel) that tokens stand for; `codebooks` and `bands` as in a vocabulary."""
    features = np.zeros((tokens.shape[1], space.num_features), dtype=np.float32)
    for row, codebook, (start, stop) in zip(tokens, codebooks, bands, strict=True):
        features[:, start:stop] += codebook[row, : stop - start]
    return unstack_features(space, features)


def separable_frames(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what each token adds to its frames, (codebook, token, frame, mel), and what they add to, (frame, mel).

    In the front end's units: `rebuild`, as a table. None where frames are no such sums, see SEPARABLE.
    """
    space, (num_codebooks, size) = vocabulary.space, vocabulary.codebooks.shape[:2]
    levelled = space.normalisation == "l2"
    if vocabulary.merged or (levelled and num_codebooks > 1):
        return None
    centre = unstack_features(space, np.zeros((1, space.num_features), np.float32))  # (frame, mel)
    tokens = np.empty((num_codebooks, size, *centre.shape), dtype=np.float32)
    for number, (codebook, (start, stop)) in enumerate(
        zip(vocabulary.codebooks, vocabulary.metadata["bands"], strict=True)
    ):
        features = np.zeros((size, space.num_features), dtype=np.float32)
        features[:, start:stop] = codebook[:, : stop - start]
        tokens[number] = unstack_features(space, features).reshape(size, *centre.shape) - centre
    if levelled:
        level, length = vocabulary.levels[0].T[:, :, None, None]
        tokens[0], centre = (tokens[0] + centre) * length + level, 0 * centre
    return tokens * space.scale, centre * space.scale + space.mean


def token_spectra(vocabulary: Vocabulary, codebook: int) -> np.ndarray:
    """Return what each token of a codebook stands for by itself, (token, mel): the mean over its frames, in its own bands.

    In the front end's units. A later codebook of residual tokens says what it adds to the mean spectrum. Merged tokens have
    the mean spectrum in bands that they say nothing of.
    """
    space, (start, stop) = vocabulary.space, vocabulary.bands[codebook]
    features = np.zeros((vocabulary.num_tokens, space.num_features), dtype=np.float32)
    features[:, start:stop] = vocabulary.token_vectors()[codebook]
    z = unstack_features(space, features).reshape(vocabulary.num_tokens, space.stack, -1).mean(axis=1)
    levels = vocabulary.levels[codebook]
    if vocabulary.merged:
        flat = vocabulary.levels.reshape(-1, 2)
        levels = np.stack([flat[list(parts)].mean(axis=0) for parts in vocabulary.parts])
    level, length = levels.T[:, :, None]
    spectra: np.ndarray = (z * length + level) * space.scale + space.mean
    if space.groups == 1 or vocabulary.merged:
        return spectra
    width = spectra.shape[1] // space.groups
    group = start * space.groups // space.num_features
    return spectra[:, group * width : (group + 1) * width]
