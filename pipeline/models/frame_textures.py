"""Textures of log-mel frames, and least squares with a radial kernel on training clips, their views, and mixtures.

`pipeline/models/textures.py` says what a texture is; `pipeline/models/machines.py` learns on them. A mixture is of two clips
with the same labels, which are its own: two rains are rain. A clip's logits are the means over its views.

Conventions: inputs are clips' frames (frame, mel) float32 in the front end's units.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from pipeline.models.baseline import Setting
from pipeline.models.machines import fit_machines, least_squares, require_room, score
from pipeline.models.textures import ViewsParams, describe, mixture, views
from pipeline.params import Params as BaseParams
from pipeline.seeding import named_seed

READS = "frames"

WHERE = "models.*.kind frame_textures and token_textures"  # of settings, for messages
_FLOOR_FRAMES = 1 << 16  # of all training clips, evenly, that the floor is taken from


class TextureParams(BaseParams):
    """What models of textures share, whatever they read."""

    floor: float = Field(ge=0, lt=1)  # part of the training frames' values that are silence: the largest of them
    views: ViewsParams
    mixtures: NonNegativeInt  # of every training clip with another one of the same labels, each time anew
    mixture_gain: NonNegativeFloat  # natural logarithm of power: how much louder or softer each of the two may be
    ridge: PositiveFloat  # scikit-learn's alpha: how far training rows may be missed
    kernel_width: PositiveFloat  # kernel exp(-|x - y|^2 * kernel_width / number of features)


class Params(TextureParams):
    kind: Literal["frame_textures"]


def fit(params: Params, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Fit on training clips; the seed draws mixtures. Returns what `fit_textures` does."""
    return fit_textures(params, inputs, targets, setting)


def predict(params: Params, weights: dict[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32."""
    return predict_textures(params, weights, inputs)


def fit_textures(
    params: TextureParams,
    clips: Sequence[np.ndarray],
    targets: np.ndarray,
    setting: Setting,
) -> dict[str, np.ndarray]:
    """Fit on clips (frame, mel) with targets (clip, class) 0-1.

    Returns what `fit_machines` does, and `heard` (3,): the floor in natural logarithms of power, the frame rate in Hz, and
    what one unit of the front end is in natural logarithms.
    """
    front_end = setting.front_end
    unit = 1.0 if front_end["units"] == "ln(power)" else math.log(10) / 10
    heard = np.array([_floor(params, clips) * unit, front_end["frame_rate"], unit], np.float32)
    require_room(len(clips) * (params.views.count + params.mixtures), WHERE)
    rows, numbers = [], []
    for number, frames in enumerate(clips):
        found = _describe_views(params, frames, heard)
        rows += found
        numbers += [number] * len(found)
    generator = np.random.default_rng(named_seed(setting.seed, "mixtures"))
    partners = _same_labels(targets)
    for _ in range(params.mixtures):
        for number, frames in enumerate(clips):
            other = clips[int(generator.choice(partners[number]))]
            mixed = mixture(frames * unit, other * unit, generator, gain=params.mixture_gain)
            rows.append(_describe(mixed, heard))
            numbers.append(number)
    machines = fit_machines(
        np.stack(rows),
        np.array(numbers),
        targets,
        least_squares(params.ridge),
        kernel_width=params.kernel_width,
        label_kind=setting.label_kind,
    )
    return machines | {"heard": heard}


def predict_textures(params: TextureParams, weights: dict[str, np.ndarray], clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32 of clips (frame, mel), each the mean over the clip's views."""
    seen = [np.stack(_describe_views(params, frames, weights["heard"])) for frames in clips]
    logits = score(weights, np.concatenate(seen), kernel_width=params.kernel_width)
    return np.asarray(logits.reshape(len(clips), -1, logits.shape[1]).mean(axis=1), dtype=np.float32)


def _describe_views(params: TextureParams, frames: np.ndarray, heard: np.ndarray) -> list[np.ndarray]:
    return [_describe(view, heard) for view in views(frames * heard[2], params.views)]


def _describe(frames: np.ndarray, heard: np.ndarray) -> np.ndarray:
    return describe(frames, floor=float(heard[0]), frame_rate=float(heard[1]))


def _floor(params: TextureParams, clips: Sequence[np.ndarray]) -> float:
    """Return the value, in the front end's units, below which the part `floor` of the clips' values lies."""
    step = max(1, sum(map(len, clips)) // _FLOOR_FRAMES)
    return float(np.quantile(np.concatenate([frames[::step] for frames in clips]), params.floor))


def _same_labels(targets: np.ndarray) -> list[np.ndarray]:
    """Return for each clip which clips have its labels, itself among them."""
    _, groups = np.unique(targets > 0.5, axis=0, return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    return [members[group] for group in groups.ravel().tolist()]
