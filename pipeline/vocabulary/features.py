"""Features that codebooks code, and their inverse: normalised frames, their slopes, stacks of them, and projections.

Conventions: frames (frame, mel) float32 in the front end's units; z the same, normalised; a window (frame, mel) is a token's
frames with a margin on either side, where a clip's first and last frame stand for those beyond its ends; features
(token, feature) float32. Their order, and what `space` holds: `pipeline/artifacts/vocabulary.py`.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.vocabulary import FeatureSpace

DIRECTIONS = ("l2", "unit")  # normalisations after which a frame has unit length
SHORTEST = 1e-6  # a frame that is this close to flat has no shape; it stays at the origin
_TOKENS_PER_BLOCK = 1 << 14  # bounds the windows that are in memory at once


def clip_features(space: FeatureSpace, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return the features of clips (frame, mel), end to end: (token, feature). No clip sees another one's frames.

    To the bit: no product takes rows of two clips, see `pipeline/vocabulary/assignment.py`.
    """
    z = normalise_frames(np.concatenate(clips), space.mean, space.scale, space.normalisation)
    if space.stack == 1 and not space.deltas and not len(space.components):  # groups stand side by side already
        return z
    features = np.empty((sum(space.num_tokens(len(clip)) for clip in clips), space.num_features), dtype=np.float32)
    first = filled = 0
    for clip in clips:
        tokens = np.arange(space.num_tokens(len(clip)))
        for start in range(0, len(tokens), _TOKENS_PER_BLOCK):
            places = window_places(
                tokens[start:][:_TOKENS_PER_BLOCK], len(clip), stack=space.stack, margin=space.margin
            )
            features[filled : filled + len(places)] = window_features(space, z[first + places])
            filled += len(places)
        first += len(clip)
    return features


def window_places(tokens: np.ndarray, num_frames: int, *, stack: int, margin: int) -> np.ndarray:
    """Return which of a clip's frames the window of each token holds: (token, frame) int64, for `tokens` (token,) int."""
    offsets = np.arange(-margin, stack + margin)
    places: np.ndarray = np.clip(tokens[:, None] * stack + offsets, 0, max(num_frames - 1, 0))
    return places


def window_features(space: FeatureSpace, windows: np.ndarray) -> np.ndarray:
    """Return the features (token, feature) of normalised windows (token, frame, mel)."""
    features = stack_windows(space, windows)
    if len(space.components):
        features = (features - space.centre) @ space.components.T
    return features


def stack_windows(space: FeatureSpace, windows: np.ndarray) -> np.ndarray:
    """Return the features (token, feature) of normalised windows (token, frame, mel), before any projection."""
    num_tokens, _, num_mels = windows.shape
    parts = [windows[:, space.deltas : space.deltas + space.span]]
    if space.deltas:
        parts.append(slopes(windows, space.deltas) / space.delta_scale)
    frames = np.stack(parts, axis=2)  # (token, frame, part, mel)
    grouped = frames.reshape(num_tokens, space.span, len(parts), space.groups, num_mels // space.groups)
    features: np.ndarray = grouped.transpose(0, 3, 1, 2, 4).reshape(num_tokens, space.num_stacked)
    return features


def slopes(windows: np.ndarray, deltas: int) -> np.ndarray:
    """Return each frame's slope over time, a frame: sum k (z[t + k] - z[t - k]) / (2 sum k^2), k = 1 .. `deltas`.

    It is the slope of the least-squares line over 2 `deltas` + 1 frames (Furui, 1986; HTK's delta coefficients). Windows
    (token, frame, mel) lose the `deltas` frames on either side.
    """
    count = windows.shape[1] - 2 * deltas
    total = np.zeros((len(windows), count, windows.shape[2]), dtype=np.float32)
    for step in range(1, deltas + 1):
        total += step * (windows[:, deltas + step :][:, :count] - windows[:, deltas - step :][:, :count])
    return total / np.float32(2 * sum(step**2 for step in range(1, deltas + 1)))


def normalise_frames(frames: np.ndarray, mean: np.ndarray, scale: np.ndarray, normalisation: str) -> np.ndarray:
    """Return z = (x - mean) / scale; "l2": z less its own mean over the bands, at unit length; "unit": z at unit length.

    A gain adds one number to all bands of a log-mel frame, so "l2" ignores level exactly when `scale` is the same in
    all bands, and keeps the shape of the spectrum alone. `mean` and `scale` are (mel,).
    """
    z: np.ndarray = np.subtract(frames, mean, dtype=np.float32)
    z /= scale
    if normalisation == "l2":
        z -= z.mean(axis=1, keepdims=True)
    if normalisation in DIRECTIONS:
        length = np.linalg.norm(z, axis=1, keepdims=True)
        z /= np.where(length > SHORTEST, length, np.float32(np.inf))
    return z


def frame_levels(frames: np.ndarray, mean: np.ndarray, scale: np.ndarray, normalisation: str) -> np.ndarray:
    """Return what DIRECTIONS take from each frame, (frame, 2): its mean over the bands ("unit": 0), and its length then."""
    z = np.subtract(frames, mean, dtype=np.float32) / scale
    level = z.mean(axis=1) if normalisation == "l2" else np.zeros(len(z), np.float32)
    return np.stack([level, np.linalg.norm(z - level[:, None], axis=1)], axis=1)


def unstack_features(space: FeatureSpace, features: np.ndarray) -> np.ndarray:
    """Return the normalised frames (frame, mel) of features (token, feature): `stack` frames a token, without slopes.

    What a projection left out comes back as its least-squares estimate over the sample; after PCA that is its mean.
    """
    if len(space.components):
        inverse = space.inverse
        if not len(inverse):
            # PCA: a unit vector over the deviation along it is, over its squared length, its own inverse.
            inverse = space.components / (space.components**2).sum(axis=1, keepdims=True)
        features = features @ inverse + space.centre
    num_mels, parts = len(space.mean), 2 if space.deltas else 1
    grouped = features.reshape(-1, space.groups, space.span, parts, num_mels // space.groups)
    grouped = grouped[:, :, space.context : space.context + space.stack, 0]
    z: np.ndarray = grouped.transpose(0, 2, 1, 3).reshape(-1, num_mels)
    return z
