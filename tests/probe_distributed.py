"""What each process of tests/test_distributed.py does under torchrun; it writes what it saw to <folder>/<rank>.json."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from networks import build, changed
from test_training import MODEL, PLAIN, SETTINGS, Memory

from pipeline.models.base import NOT_NORMALISED
from pipeline.training import loop
from pipeline.training.batches import Batches, StoredBatch
from pipeline.training.classification import Classification
from pipeline.training.distributed import DistributedContext, init_distributed
from pipeline.training.logits import predict_logits
from pipeline.training.loop import train
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams
from pipeline.training.validation import Examples, Validation

# Without random numbers, the processes' steps are those of one process but for rounding.
EXACT: dict[str, Any] = changed(MODEL, {"encoder.drop_path": 0.0})
PATCHES = {
    "kind": "patches",
    "frames": 8,
    "bands": 3,
    "stride_frames": 8,
    "stride_bands": 3,
    "positions": {"kind": "sinusoidal"},
}
NO_BATCH_NORM: dict[str, Any] = EXACT | {"stem": PATCHES}  # without batch norm, which sees a part at a time
ACCUMULATED = {"augmentation": PLAIN, "accumulate": 3, "average": {"kind": "last", "epochs": 2}}
NUM_CLIPS = 23  # batches of 8, 8 and 7: the last one's parts are of 4 and 3 clips


class Recording(Batches):
    """Batches that remember which rows were taken."""

    def __init__(self, inputs: Any, clip_ids: Sequence[str], normalisation: Any) -> None:
        super().__init__(inputs, clip_ids, normalisation)
        self.taken: list[int] = []

    def take(self, rows: Sequence[int]) -> StoredBatch:
        self.taken += rows
        return super().take(rows)


def make_examples(num_clips: int = NUM_CLIPS) -> Examples:
    inputs = Memory(num_clips)
    ids = list(inputs.clips)
    targets = torch.nn.functional.one_hot(torch.arange(num_clips) % 3, 3).float()
    return Examples(Recording(inputs, ids, NOT_NORMALISED), targets, ids)


def run_training(
    section: dict[str, Any],
    changes: dict[str, Any],
    checkpoint: Path,
    context: DistributedContext,
    die_after: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Train on the examples and return what happened; `die_after` so many epochs, all processes stop as if killed."""
    model = build(section, {"n_mels": 6}, 3, seed=5)
    examples = make_examples()
    epochs: list[dict[str, float]] = []
    seeds: list[int] = []

    def on_epoch(row: dict[str, float], _timing: dict[str, float]) -> None:
        epochs.append(row)
        seeds.append(torch.initial_seed())
        if len(epochs) == die_after + 1 and die_after:
            raise KeyboardInterrupt

    settings, others = TrainParams.model_validate(SETTINGS | changes), options.get("validation")
    try:
        train(
            model, settings, Classification(settings, loss_of("one"), 1, None), examples,
            Validation(others, loss_of("one"), None, settings.batch_size) if others else None,
            seed=3, on_epoch=on_epoch, checkpoint=checkpoint, context=context,
        )  # fmt: skip
    except KeyboardInterrupt:
        assert die_after
    state = model.state_dict()
    statistics = [value.tolist() for name, value in state.items() if "running_" in name]
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
    assert isinstance(examples.batches, Recording)
    return {
        "losses": [row["loss"] for row in epochs],
        "norms": [row["gradient_norm"] for row in epochs],
        "validation": [row.get("validation_loss") for row in epochs],
        "seeds": seeds,
        "taken": examples.batches.taken,
        "statistics": [number for values in statistics for number in values],
        "weights": digest,
    }


def predict_seven(context: DistributedContext) -> list[list[float]]:
    """Return the logits of an untrained model for seven clips, two a batch: four batches for the processes to share."""
    model = build(MODEL, {"n_mels": 6}, 3, seed=5)
    logits: list[list[float]] = predict_logits(model, make_examples(7).batches, 2, context).tolist()
    return logits


def probe(folder: Path, context: DistributedContext) -> dict[str, Any]:
    """Return what takes little time."""
    seen: dict[str, Any] = {
        "exact": run_training(EXACT, {"augmentation": PLAIN}, folder / "a", context, validation=make_examples(9)),
        "parts": run_training(NO_BATCH_NORM, ACCUMULATED, folder / "p", context),
        "predictions": predict_seven(context),
    }
    try:
        context.assemble(torch.tensor([0, context.rank]), torch.zeros(2, 3), 2)
    except RuntimeError as error:
        seen["twice"] = str(error)
    return seen


def probe_more(folder: Path, context: DistributedContext) -> dict[str, Any]:
    """Return the rest."""
    loop.CHECKPOINT_SECONDS = 0.0
    seen = {
        "straight": run_training(MODEL, {}, folder / "b", context),
        "balanced": run_training(MODEL, {"sampling": "balanced"}, folder / "c", context),
    }
    run_training(MODEL, {}, folder / "killed", context, die_after=2)
    seen["resumed"] = run_training(MODEL, {}, folder / "killed", context)
    run_training(MODEL, {}, folder / "left", context, die_after=2)  # for one process to go on with
    return seen


if __name__ == "__main__":
    with init_distributed() as context:
        seen = (probe_more if sys.argv[2:] == ["more"] else probe)(Path(sys.argv[1]), context)
    Path(sys.argv[1], f"{context.rank}.json").write_text(json.dumps(seen))
