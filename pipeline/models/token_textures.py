"""Textures of what words stand for: `pipeline/models/frame_textures.py` on the frames that a sentence gives back.

What it scores beside `frame_textures` is what a vocabulary loses of the sounds' textures. What every
word adds to its frames (`pipeline/vocabulary/rebuilding.py`) is stored with the model, which predicts from tokens alone.

Conventions: inputs are clips' tokens (codebook, word) uint16.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.errors import ParamsError
from pipeline.models.baseline import Setting
from pipeline.models.frame_textures import TextureParams, fit_textures, predict_textures
from pipeline.vocabulary.rebuilding import SEPARABLE, separable_frames

READS = "tokens"


class Params(TextureParams):
    kind: Literal["token_textures"]


def require_vocabulary(vocabulary: Any) -> None:
    """Raise ValueError for params of a vocabulary whose frames are no sums, before it is learnt."""
    several = vocabulary.normalisation == "l2" and vocabulary.kind != "kmeans"
    if vocabulary.bpe is not None or several:
        found = "merged words" if vocabulary.bpe is not None else f"kind {vocabulary.kind} with l2"
        raise ValueError(f"expected {SEPARABLE}, found {found}")


def fit(params: Params, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Fit on training clips; the seed draws mixtures.

    Returns what `fit_textures` does, and `words` (codebook, word, frame, mel), what each word adds to its frames in the
    front end's units, and `silence` (frame, mel), what they add to. Raises ParamsError where frames are no such sums.
    """
    vocabulary = setting.vocabulary
    assert vocabulary is not None  # the stage opens it for all that read tokens
    table = separable_frames(vocabulary)
    if table is None:
        raise ParamsError(
            f"models.*.kind token_textures: expected a vocabulary of {SEPARABLE}, found {vocabulary.path}; leave it out of "
            "experiment.vocabularies, or token_textures out of experiment.token_models"
        )
    weights = dict(zip(("words", "silence"), table, strict=True))
    clips = [_rebuild(weights, tokens) for tokens in inputs]
    return weights | fit_textures(params, clips, targets, setting)


def predict(params: Params, weights: dict[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32."""
    return predict_textures(params, weights, [_rebuild(weights, tokens) for tokens in inputs])


def _rebuild(weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Return the frames (frame, mel) of tokens (codebook, word)."""
    words, silence = weights["words"], weights["silence"]
    frames = np.zeros((tokens.shape[1], *words.shape[2:]), dtype=np.float32)
    for added, codebook in zip(words, tokens, strict=True):
        frames += added[codebook]
    rebuilt: np.ndarray = (frames + silence).reshape(-1, words.shape[3])
    return rebuilt
