"""Bag of tokens: which words a clip holds and how often, not where; the floor under every model of sentences.

Counts over all codebooks -> TF-IDF at unit length (Salton and Buckley, 1988) -> logistic regression: multinomial for one
label a clip, one regression a class for many. scikit-learn fits; prediction is plain NumPy.

Conventions: inputs are clips' tokens (codebook, frame) uint16; features (clip, codebook * word).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from pipeline.models.baseline import UNSEEN_LOGIT, Setting
from pipeline.params import Params as BaseParams

READS = "tokens"


class Params(BaseParams):
    kind: Literal["bag_of_tokens"]
    sublinear: bool  # 1 + ln(count) instead of count: a word that lasts twice as long does not say twice as much
    regularisation: PositiveFloat  # scikit-learn's C: larger is weaker
    iterations: PositiveInt  # of L-BFGS, at most


def fit(params: Params, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Fit on training clips; `targets` (clip, class) 0-1. Nothing is drawn from the seed.

    Returns `idf` (codebook, word), `coefficients` (class, codebook * word) and `intercepts` (class,).
    """
    from sklearn.linear_model import LogisticRegression

    counts = _count(inputs, *(int(setting.input_facts[key]) for key in ("num_codebooks", "vocabulary_size")))
    num_clips, num_codebooks, size = counts.shape
    idf = np.log((1 + num_clips) / (1 + (counts > 0).sum(axis=0))) + 1
    features = _features(params, counts, idf)
    num_classes = targets.shape[1]
    coefficients = np.zeros((num_classes, num_codebooks * size))
    intercepts = np.full(num_classes, UNSEEN_LOGIT)
    regression = LogisticRegression(C=params.regularisation, max_iter=params.iterations)
    if setting.label_kind == "one":
        classes = targets.argmax(axis=1)
        seen = np.unique(classes)
        if len(seen) == 1:
            intercepts[seen] = -UNSEEN_LOGIT
        else:
            regression.fit(features, classes)
            weights, biases = regression.coef_, regression.intercept_
            if len(seen) == 2:  # scikit-learn keeps the difference of the two logits alone
                weights, biases = np.stack([-weights[0], weights[0]]) / 2, np.array([-biases[0], biases[0]]) / 2
            coefficients[seen], intercepts[seen] = weights, biases
    else:
        for number, wanted in enumerate(targets.T > 0.5):
            if wanted.all():
                intercepts[number] = -UNSEEN_LOGIT
            elif wanted.any():
                regression.fit(features, wanted)
                coefficients[number], intercepts[number] = regression.coef_[0], regression.intercept_[0]
    weights_by_name = {"idf": idf, "coefficients": coefficients, "intercepts": intercepts}
    return {name: values.astype(np.float32) for name, values in weights_by_name.items()}


def predict(params: Params, weights: dict[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32 from clips' tokens."""
    idf = weights["idf"]
    features = _features(params, _count(inputs, *idf.shape), idf)
    logits = features @ weights["coefficients"].T.astype(np.float64) + weights["intercepts"]
    return np.asarray(logits, dtype=np.float32)


def _count(inputs: Sequence[np.ndarray], num_codebooks: int, size: int) -> np.ndarray:
    """Return how often each clip holds each word, (clip, codebook, word) float64."""
    counts = np.zeros((len(inputs), num_codebooks, size))
    for clip, tokens in enumerate(inputs):
        for codebook, words in enumerate(tokens):
            counts[clip, codebook] = np.bincount(words, minlength=size)
    return counts


def _features(params: Params, counts: np.ndarray, idf: np.ndarray) -> np.ndarray:
    """Return TF-IDF of counts at unit length, (clip, codebook * word); zeros for a clip without frames."""
    frequency = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) if params.sublinear else counts
    features = (frequency * idf).reshape(len(counts), idf.size)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(length > 0, length, 1))
