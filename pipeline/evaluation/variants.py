"""Variants of a run that keeps epochs: its stored weights, and the mean of the weights of its kept epochs.

The run itself predicts the mean of the kept epochs' probabilities (`pipeline/evaluation/network_prediction.py`). So one run
gives the three numbers in which AST's and PSLA's results are published: the best epoch, the mean of weights ("WA") and the
mean of predictions (Gong et al., 2021). The stored weights are those of the best epoch with `train.keep_best`, those at the
end of training without.

The running means and variances of batch norm are averaged like weights, as in `pipeline/training/averaging.py`. Stochastic
weight averaging (Izmailov et al., 2018, arXiv 1803.05407) computes them again from training clips, which `evaluate` does not
read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from pipeline.artifacts.layout import MEAN_OF_WEIGHTS, STORED_WEIGHTS
from pipeline.artifacts.model import TrainedModel, count_predicting, open_members
from pipeline.artifacts.predictions import VariantMetadata
from pipeline.artifacts.tables import metadata_digest
from pipeline.artifacts.weights import EPOCHS


def variants_of(model: TrainedModel) -> dict[str, VariantMetadata]:
    """Return the metadata of a run's variants by name; none where it keeps no epochs."""
    if EPOCHS not in model.metadata:
        return {}
    digests = {
        STORED_WEIGHTS: model.metadata["weights"],
        MEAN_OF_WEIGHTS: metadata_digest({MEAN_OF_WEIGHTS: model.metadata[EPOCHS]}),
    }
    size = count_predicting(model.weights, {})
    return {name: {"num_parameters": size, "weights": digest} for name, digest in digests.items()}


def open_variant(model: TrainedModel, name: str) -> TrainedModel:
    """Return a run's model with the weights of a variant."""
    if name == STORED_WEIGHTS:
        return model
    return replace(model, weights=mean_of_weights(member.weights for member in open_members(model)))


def mean_of_weights(members: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of each floating-point array, added in float64; of others, which count steps, the last one."""
    total: dict[str, np.ndarray] = {}
    count = 0
    for last in members:
        count += 1
        for name, array in last.items():
            total[name] = total.get(name, 0) + array.astype(np.float64) if array.dtype.kind == "f" else array
    return {name: np.asarray(total[name] / count, a.dtype) if a.dtype.kind == "f" else a for name, a in last.items()}
