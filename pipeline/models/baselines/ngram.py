"""N-gram classifier: one n-gram model of token sequences per class.

A class's model is fitted on its training clips, and a clip is assigned to the class under which it is most likely, as in
language identification of text (Dunning, 1994). Each codebook has separate models. Neighbouring frames are correlated, so
the sum over a clip's tokens would be overconfident: their mean is scaled by a temperature that is fitted on training clips,
each scored by models of the other half. The n-gram models are those of `pipeline/vocabulary/ngrams.py`.

Conventions: inputs are clips' tokens (codebook, frame) uint16; evidence (clip, class) is the mean over a clip's tokens of
ln p(token | model of the class) - ln p(token | model of all training clips).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.model import Reads
from pipeline.models.base import ModelParams
from pipeline.models.baselines.base import UNSEEN_LOGIT, Baseline, Setting, Weights
from pipeline.models.baselines.calibration import fit_scale
from pipeline.vocabulary.ngrams import Level, count_ngrams, sequence_sums, token_probabilities

_CALIBRATING_CLIPS = 2000  # at most; scoring takes clips times classes


class NgramParams(ModelParams):
    kind: Literal["ngram"]
    order: int = Field(ge=1, le=5)  # tokens, of which the last is predicted from the others

    @property
    def reads(self) -> Reads:
        return "tokens"


class NgramClassifier(Baseline):
    Params = NgramParams
    params: NgramParams

    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Return the counts of the n-gram models, and the scale and biases of their evidence.

        These are `scale` (1,) and `biases` (class,), `shape` (codebooks, classes, tokens), and of each level of the models
        of the classes and of the common one `keys` and `counts`. Memory grows with the tokens of the training clips. The fit
        is deterministic.
        """
        size = setting.input_metadata["vocabulary_size"]
        wanted = targets > 0.5
        known = ~np.isnan(targets)
        biases = _prior_logits(wanted, known.sum(axis=0), setting.label_kind)
        evidence, scored = _cross_evidence(self.params.order, inputs, wanted, size)
        weights = _count(self.params.order, inputs, wanted, size)
        scale = fit_scale(
            lambda factor: _logits(evidence, factor, biases),
            wanted[scored],
            setting.label_kind,
            known=None if known.all() else known[scored],
        )
        return weights | {"scale": np.array([scale], np.float32), "biases": biases}

    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return _logits(_evidence(weights, inputs), float(weights["scale"][0]), weights["biases"])


def _count(order: int, inputs: Sequence[np.ndarray], wanted: np.ndarray, size: int) -> Weights:
    """Count the grams of each class's clips, and of all; `wanted` (clip, class) bool."""
    num_classes, num_codebooks = wanted.shape[1], len(inputs[0])
    shape = np.array([num_codebooks, num_classes, size], np.int64)
    classes, everyone = [], []
    for clip, class_id in zip(*np.nonzero(wanted), strict=True):
        classes += [(row, class_id * num_codebooks + book) for book, row in enumerate(inputs[clip])]
    for tokens in inputs:
        everyone += [(row, book) for book, row in enumerate(tokens)]
    weights = {"shape": shape}
    for name, rows, num_groups in (
        ("class", classes, num_classes * num_codebooks),
        ("all", everyone, num_codebooks),
    ):
        sequences, groups = [row for row, _ in rows], [group for _, group in rows]
        levels = count_ngrams(sequences, groups, num_groups=num_groups, size=size, order=order)
        for length, level in enumerate(levels, 1):
            weights |= {f"{name}_keys_{length}": level.keys, f"{name}_counts_{length}": level.counts}
    return weights


def _levels(weights: Weights, name: str) -> list[Level]:
    """Return the levels that `_count` stored in the weights under a name."""
    num_codebooks, num_classes, size = weights["shape"].tolist()
    num_contexts = num_codebooks * (num_classes if name == "class" else 1)
    levels: list[Level] = []
    while (keys := weights.get(f"{name}_keys_{len(levels) + 1}")) is not None:
        levels.append(Level(size, num_contexts, keys, weights[f"{name}_counts_{len(levels) + 1}"]))
        num_contexts = len(keys)
    return levels


def _evidence(weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the evidence (clip, class) float64; 0 for a clip without tokens."""
    num_codebooks, num_classes, _ = weights["shape"].tolist()
    class_levels, all_levels = _levels(weights, "class"), _levels(weights, "all")
    sequences = [row for tokens in inputs for row in tokens]
    books = np.tile(np.arange(num_codebooks), len(inputs))
    common = np.log(token_probabilities(all_levels, sequences, books))
    base = token_probabilities(all_levels[:1], sequences, books)
    num_tokens = np.array([max(1, tokens.size) for tokens in inputs])
    evidence = np.empty((len(inputs), num_classes))
    for class_id in range(num_classes):
        own = np.log(token_probabilities(class_levels, sequences, class_id * num_codebooks + books, base))
        sums = sequence_sums(own - common, sequences).reshape(-1, num_codebooks).sum(axis=1)
        evidence[:, class_id] = sums / num_tokens
    return evidence


def _cross_evidence(
    order: int, inputs: Sequence[np.ndarray], wanted: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return evidence (clip, class) of training clips under models of the other half, and the positions of these clips."""
    scored = np.unique(np.linspace(0, len(inputs) - 1, min(len(inputs), _CALIBRATING_CLIPS)).astype(np.int64))
    evidence = np.zeros((len(scored), wanted.shape[1]))
    for half in (0, 1):
        others, own = np.flatnonzero(np.arange(len(inputs)) % 2 != half), scored % 2 == half
        if len(others):
            weights = _count(order, [inputs[clip] for clip in others.tolist()], wanted[others], size)
            evidence[own] = _evidence(weights, [inputs[clip] for clip in scored[own].tolist()])
    return evidence, scored


def _prior_logits(wanted: np.ndarray, num_known: np.ndarray, label_kind: LabelKind) -> np.ndarray:
    """Return the prior logit of each class, (class,) float32, from the clips whose label is known, (class,) of them."""
    present = wanted.sum(axis=0)
    if label_kind == "one":
        logits = np.log(np.maximum(present, 1) / len(wanted))
    else:
        logits = np.log((present + 0.5) / (num_known - present + 0.5))
    logits = np.where(present == 0, UNSEEN_LOGIT, np.where(present == num_known, -UNSEEN_LOGIT, logits))
    return logits.astype(np.float32)


def _logits(evidence: np.ndarray, scale: float, biases: np.ndarray) -> np.ndarray:
    """Return logits (clip, class) float32."""
    logits = scale * evidence + biases
    unseen = biases <= UNSEEN_LOGIT
    logits[:, unseen] = UNSEEN_LOGIT + logits[:, ~unseen].min(axis=1, initial=0, keepdims=True)
    return np.asarray(logits, dtype=np.float32)
