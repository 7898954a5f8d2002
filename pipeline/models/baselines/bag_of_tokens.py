"""Bag-of-tokens classifier: logistic regression on token counts, without their order.

Counts over all codebooks -> TF-IDF at unit length (Salton and Buckley, 1988) -> logistic regression: multinomial for one
label per clip, one binary regression per class for many. scikit-learn fits; prediction is plain NumPy.

Conventions: inputs are clips' tokens (codebook, frame) uint16; features (clip, codebook * token).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from pipeline.artifacts.model import Reads
from pipeline.models.base import ModelParams
from pipeline.models.baselines.base import UNSEEN_LOGIT, Baseline, Setting, Weights


class BagOfTokensParams(ModelParams):
    kind: Literal["bag_of_tokens"]
    sublinear: bool  # 1 + ln(count) instead of count, so that repetitions of a token count less
    regularisation: PositiveFloat  # scikit-learn's C: larger is weaker
    iterations: PositiveInt  # of L-BFGS, at most

    @property
    def reads(self) -> Reads:
        return "tokens"


class BagOfTokens(Baseline):
    Params = BagOfTokensParams
    params: BagOfTokensParams

    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Return `idf` (codebook, token), `coefficients` (class, codebook * token) and `intercepts` (class,).

        The fit is deterministic.
        """
        from sklearn.linear_model import LogisticRegression

        counts = _count(inputs, setting.input_metadata["num_codebooks"], setting.input_metadata["vocabulary_size"])
        num_clips, num_codebooks, size = counts.shape
        idf = np.log((1 + num_clips) / (1 + (counts > 0).sum(axis=0))) + 1
        features = _features(counts, idf, sublinear=self.params.sublinear)
        num_classes = targets.shape[1]
        coefficients = np.zeros((num_classes, num_codebooks * size))
        intercepts = np.full(num_classes, UNSEEN_LOGIT)
        regression = LogisticRegression(C=self.params.regularisation, max_iter=self.params.iterations)
        if setting.label_kind == "one":
            classes = targets.argmax(axis=1)
            seen = np.unique(classes)
            if len(seen) == 1:
                intercepts[seen] = -UNSEEN_LOGIT
            else:
                regression.fit(features, classes)
                weights, biases = regression.coef_, regression.intercept_
                if len(seen) == 2:  # scikit-learn stores only the difference of the two logits
                    weights, biases = np.stack([-weights[0], weights[0]]) / 2, np.array([-biases[0], biases[0]]) / 2
                coefficients[seen], intercepts[seen] = weights, biases
        else:
            for number, labels in enumerate(targets.T):
                known = ~np.isnan(labels)
                wanted = labels[known] > 0.5
                if not wanted.any():
                    continue
                if wanted.all():
                    intercepts[number] = -UNSEEN_LOGIT
                else:
                    regression.fit(features[known], wanted)
                    coefficients[number], intercepts[number] = regression.coef_[0], regression.intercept_[0]
        weights_by_name = {"idf": idf, "coefficients": coefficients, "intercepts": intercepts}
        return {name: values.astype(np.float32) for name, values in weights_by_name.items()}

    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        idf = weights["idf"]
        features = _features(_count(inputs, *idf.shape), idf, sublinear=self.params.sublinear)
        logits = features @ weights["coefficients"].T.astype(np.float64) + weights["intercepts"]
        return np.asarray(logits, dtype=np.float32)


def _count(inputs: Sequence[np.ndarray], num_codebooks: int, size: int) -> np.ndarray:
    """Return the token counts of each clip, (clip, codebook, token) float64."""
    counts = np.zeros((len(inputs), num_codebooks, size))
    for clip, tokens in enumerate(inputs):
        for codebook, ids in enumerate(tokens):
            counts[clip, codebook] = np.bincount(ids, minlength=size)
    return counts


def _features(counts: np.ndarray, idf: np.ndarray, *, sublinear: bool) -> np.ndarray:
    """Return L2-normalised TF-IDF of counts, (clip, codebook * token); zeros for a clip without frames."""
    frequency = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) if sublinear else counts
    features = (frequency * idf).reshape(len(counts), idf.size)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(length > 0, length, 1))
