"""Reconstruction of frames from tokens.

Conventions: tokens (codebook, token) uint16; frames (frame, mel) float32 in the front end's units; z the same, normalised. A
token stands for `stack` frames, so a token sequence gives a multiple of that, the last of which may lie behind the clip's
end.
"""

import numpy as np

from pipeline.artifacts.vocabulary import SPECTRA, Codebooks, FeatureSpace, Vocabulary
from pipeline.errors import SonolexError
from pipeline.vocabulary.bpe import merger_of, separate
from pipeline.vocabulary.features import DIRECTIONS, unstack_features
from pipeline.vocabulary.registry import KINDS

SEPARABLE = (
    "plain tokens (bpe: null) of frames, of a kind whose codes add up, of one codebook if normalisation is l2 or unit"
)


def rebuild(vocabulary: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """Return the frames (frame, mel) that tokens (codebook, token) stand for: what their kind decodes them to.

    Slopes are dropped, and what PCA left out is its mean. With normalisations "l2" and "unit" a frame has the mean level and
    length of its tokens in the sample, since no token tells how loud it was. Merged tokens stand for all frames of theirs;
    raises SonolexError when a token sequence of them does not give whole frames, and for a vocabulary of hidden states.
    """
    space = vocabulary.space
    if vocabulary.network is not None:
        raise SonolexError(
            f"{vocabulary.path}: expected a vocabulary of frames, found one of hidden states, whose tokens stand for "
            "none, so that none can be rebuilt; take another vocabulary, or `token_spectra`"
        )
    if vocabulary.merged:
        num_codebooks, size = vocabulary.codebooks.shape[:2]
        base = merger_of(vocabulary.merges, num_codebooks * size).split(tokens[0])
        tokens = separate(base, num_codebooks, size)
    z = decode_frames(space, vocabulary.kind, vocabulary.fitted, tokens)
    if space.normalisation in DIRECTIONS:
        levels = np.stack([levels[row] for levels, row in zip(vocabulary.levels, tokens, strict=True)]).mean(axis=0)
        level, length = np.repeat(levels, space.stack, axis=0).T[:, :, None]
        z = z * length + level
    frames: np.ndarray = z * space.scale + space.mean
    return frames


def decode_frames(space: FeatureSpace, kind: str, codebooks: Codebooks, tokens: np.ndarray) -> np.ndarray:
    """Return the normalised frames (frame, mel) that tokens (codebook, token) of a kind stand for."""
    return unstack_features(space, KINDS[kind].decode(codebooks, tokens))


def separable_frames(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what each token adds to its frames, (codebook, token, frame, mel), and what they add to, (frame, mel).

    In the front end's units: `rebuild`, as a table. None where frames are no such sums, see SEPARABLE.
    """
    space, (num_codebooks, size) = vocabulary.space, vocabulary.codebooks.shape[:2]
    levelled = space.normalisation in DIRECTIONS
    plain = vocabulary.decodable and vocabulary.additive and not vocabulary.merged
    if not plain or (levelled and num_codebooks > 1):
        return None
    centre = unstack_features(space, np.zeros((1, space.num_features), np.float32))  # (frame, mel)
    tokens = np.empty((num_codebooks, size, *centre.shape), dtype=np.float32)
    for number, (codes, (start, stop)) in enumerate(
        zip(vocabulary.fitted.vectors, vocabulary.fitted.bands, strict=True)
    ):
        features = np.zeros((size, space.num_features), dtype=np.float32)
        features[:, start:stop] = codes
        tokens[number] = unstack_features(space, features).reshape(size, *centre.shape) - centre
    if levelled:
        level, length = vocabulary.levels[0].T[:, :, None, None]
        tokens[0], centre = (tokens[0] + centre) * length + level, 0 * centre
    return tokens * space.scale, centre * space.scale + space.mean


def token_spectra(vocabulary: Vocabulary, codebook: int) -> np.ndarray:
    """Return what each token of a codebook stands for by itself, (token, mel): the mean over its frames, in its own bands.

    In the front end's units. Tokens of a codebook that codes what others left over have what they add to the mean
    spectrum. Merged tokens have the mean spectrum in bands that they do not cover. Tokens that stand for no frames have the
    mean of the frames in the middle of their occurrences.
    """
    if not vocabulary.decodable:
        spectra = vocabulary.own[SPECTRA].values
        if not vocabulary.merged:
            return np.asarray(spectra[codebook])
        flat = spectra.reshape(-1, spectra.shape[2])
        return np.stack([flat[list(parts)].mean(axis=0) for parts in vocabulary.parts])
    space, (start, stop) = vocabulary.space, vocabulary.bands[codebook]
    features = np.zeros((vocabulary.num_tokens, space.num_features), dtype=np.float32)
    features[:, start:stop] = vocabulary.token_vectors()[codebook]
    z = unstack_features(space, features).reshape(vocabulary.num_tokens, space.stack, -1).mean(axis=1)
    levels = vocabulary.levels[codebook]
    if vocabulary.merged:
        flat = vocabulary.levels.reshape(-1, 2)
        levels = np.stack([flat[list(parts)].mean(axis=0) for parts in vocabulary.parts])
    level, length = levels.T[:, :, None]
    frames: np.ndarray = (z * length + level) * space.scale + space.mean
    if space.groups == 1 or vocabulary.merged:
        return frames
    width = frames.shape[1] // space.groups
    group = start * space.groups // space.num_features
    return frames[:, group * width : (group + 1) * width]
