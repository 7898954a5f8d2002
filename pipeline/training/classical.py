"""Training of classical models: one fit, in one process."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.clips import LINKS
from pipeline.artifacts.curves import write_fitted
from pipeline.execution import launch
from pipeline.models.base import ModelParams
from pipeline.models.baselines.base import LazyClips, Setting
from pipeline.models.registry import BASELINES
from pipeline.training.inputs import Inputs
from pipeline.training.targets import decide_soft
from pipeline.training.trainers import Fitted, Score, TrainingData

FRAMES_BYTES = 2 << 30  # of a run's clips, up to which their frames are in memory

log = logging.getLogger(__name__)


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
    targets = decide_soft(data.training.targets, data.label_kind)
    if targets is not data.training.targets:
        log.warning("a model of kind %s is fitted on labels of 0 and 1: soft labels are decided", params.kind)
    weights = BASELINES[params.kind](params).fit(_clips(inputs, data.training.clip_ids), targets, setting)
    write_fitted(curves_path)
    seconds = time.perf_counter() - started
    return Fitted(weights, {}, inputs.metadata, LINKS[data.label_kind], len(data.training.clip_ids), 1, seconds, ())


def _clips(inputs: Inputs, clip_ids: Sequence[str]) -> Sequence[np.ndarray]:
    """Return the arrays of clips; frames beyond `FRAMES_BYTES` are read when they are used. Tokens are in memory anyway."""
    values = sum(map(inputs.num_frames, clip_ids)) * inputs.metadata.get("n_mels", 0)
    if values * np.dtype(np.float32).itemsize <= FRAMES_BYTES:
        return inputs.arrays(clip_ids)
    return LazyClips(len(clip_ids), lambda clip: inputs.arrays([clip_ids[clip]])[0])
