"""Training of classical models: one fit, in one process."""

import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.curves import write_fitted
from pipeline.execution import launch
from pipeline.models.base import ModelParams
from pipeline.models.baselines.base import Setting
from pipeline.models.registry import BASELINES
from pipeline.training.trainers import Fitted, Score, TrainingData


def train(
    params: ModelParams,
    data: TrainingData,
    *,
    seed: int,
    curves_path: Path,
    score: Score,
    trackers: Sequence[str],
) -> Fitted | None:
    """Return the fitted model, or None in all processes but the first; write a note in place of curves."""
    if not launch.is_main_process():
        return None
    started, inputs = time.perf_counter(), data.inputs
    setting = Setting(inputs.metadata, inputs.front_end, data.label_kind, seed, data.vocabulary)
    weights = BASELINES[params.kind](params).fit(inputs.arrays(data.training.clip_ids), data.training.targets, setting)
    write_fitted(curves_path)
    seconds = time.perf_counter() - started
    return Fitted(weights, {}, inputs.metadata, len(data.training.clip_ids), 1, seconds, ())
