"""Benchmark of training on tokens and on frames with the same encoder: clips/s, waits for input, bytes read in an epoch.

    python -m benchmarks.encoders WORKSPACE --fold 1 --vocabulary bands

WORKSPACE is a project whose stages up to `tokenize` have run. Its params.yaml says how models are trained; each is trained
without any augmentation (`plain`), with that of params.yaml (`augmented`), and models on tokens also with tokens of
augmented frames (`retokenised`). A round is an epoch of some clips through the training loop, reading included; rounds of
all contenders alternate. Rates are of processor time on one thread; ratios are medians over the rounds.

`read MB` is what an epoch of all training clips takes in memory as it is stored, frames in `spectrogram.dtype` and tokens in
two bytes each; `on disk` is the size of the artifact's share for these clips, where tokens are compressed.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.contenders import no_augmentation
from benchmarks.measuring import interleave, report
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.models.network import NetworkParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params
from pipeline.training.inputs import Inputs
from pipeline.training.loop import train
from pipeline.training.neural import initial_network, training_loss, training_task
from pipeline.training.opening import DataPaths, open_training_data
from pipeline.training.settings import TrainParams
from pipeline.training.step import keep_freed_memory
from pipeline.training.trainers import TrainingData

PAIRS = (("token_transformer", "ast"), ("texture_transformer", "frame_texture_transformer"))


class Contender(NamedTuple):
    """A model, and what is done to its clips."""

    entry: str
    reads_tokens: bool
    way: str  # plain, augmented or retokenised

    @property
    def title(self) -> str:
        return f"{self.entry}, {self.way}"

    @property
    def on_frames(self) -> "Contender":
        """Return the same on frames."""
        entry = dict(PAIRS)[self.entry] if self.reads_tokens else self.entry
        return Contender(entry, False, "plain" if self.way == "plain" else "augmented")


class Round(NamedTuple):
    """Cost of one round."""

    clips_per_second: float  # of processor time
    waiting: float  # fraction of the time in which training waits for clips


def contenders() -> list[Contender]:
    """Return all contenders, a model on tokens before the same on frames."""
    found = []
    for tokens, frames in PAIRS:
        for way in ("plain", "augmented"):
            found += [Contender(tokens, True, way), Contender(frames, False, way)]
        found.append(Contender(tokens, True, "retokenised"))
    return found


def open_data(workspace: Path, contender: Contender, fold: str, vocabulary: str) -> TrainingData:
    """Open the training clips of a fold as a contender reads them."""
    layout = Layout(workspace)
    model = ModelId(contender.entry, vocabulary if contender.reads_tokens else "")
    paths = DataPaths(
        layout.development(fold),
        layout.targets(fold),
        layout.training_source(model, fold),
        layout.vocabulary(vocabulary, fold) if contender.reads_tokens else None,
        pretrained=None,
        frames=layout.spectrogram if contender.way == "retokenised" else None,
    )
    data, _ = open_training_data("tokens" if contender.reads_tokens else "frames", paths, fold)
    return data


def settings(workspace: Path, contender: Contender, batch_size: int) -> TrainParams:
    """Return the training settings of a contender, for one epoch."""
    params = load_params(TrainParams, "train", workspace / "params.yaml")
    own = params.augmentation.model_copy(update={"retokenize": contender.way == "retokenised"})
    augmentation = no_augmentation() if contender.way == "plain" else own
    return params.model_copy(
        update={"epochs": 1, "batch_size": batch_size, "augmentation": augmentation, "checkpoint_ensemble": []}
    )


def make_round(
    workspace: Path, contender: Contender, data: TrainingData, clips: int, batch_size: int
) -> Callable[[], Round]:
    """Return the function that trains an epoch of the first `clips` clips."""
    entry = load_model_params(contender.entry, workspace / "params.yaml")
    assert isinstance(entry, NetworkParams)
    params = settings(workspace, contender, batch_size)
    few = data.training._replace(
        clip_ids=data.training.clip_ids[:clips],
        targets=data.training.targets[:clips],
        groups=data.training.groups[:clips],
    )
    part = data._replace(training=few)
    model, metadata = initial_network(entry, part, training_loss(params, part, sums=False).link, seed=0)
    task, examples = training_task(params, part, metadata["normalisation"], model.frames_read)

    def round_of() -> Round:
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            trained = train(
                model, params, task, examples, None,
                seed=0, on_epoch=lambda row, timing: None, checkpoint=Path(folder) / "c",
            )  # fmt: skip
            return Round(clips / (time.process_time() - before), trained.timing.epochs[-1]["input_fraction"])

    return round_of


def stored_bytes(inputs: Inputs, data: TrainingData) -> int:
    """Return the bytes of all training clips as an epoch reads them."""
    return sum(array.nbytes for clip in data.training.clip_ids for array in inputs.stored([clip]))


def disk_bytes(workspace: Path, inputs: Inputs, fold: str, vocabulary: str, data: TrainingData) -> int:
    """Return the bytes of the training clips in the artifact: the table of tokens, or the chunks of frames."""
    if inputs.time_axis:
        return Layout(workspace).development_tokens(vocabulary, fold).stat().st_size
    return stored_bytes(inputs, data)  # chunks are not compressed


def run(
    workspace: Path, fold: str, vocabulary: str, *, clips: int, batch_size: int, repeats: int
) -> list[dict[str, Any]]:
    """Measure all contenders and return the rows of the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.set_flush_denormal(True)
    data = {contender: open_data(workspace, contender, fold, vocabulary) for contender in contenders()}
    rounds = {c.title: make_round(workspace, c, opened, clips, batch_size) for c, opened in data.items()}
    for warm in rounds.values():
        warm()
    costs = interleave(rounds, repeats)
    rows = []
    for contender, opened in data.items():
        own, other = costs[contender.title], costs[contender.on_frames.title]
        read = opened.frames or opened.inputs
        rows.append(
            {
                "model": f"{contender.entry}-{vocabulary}" if contender.reads_tokens else contender.entry,
                "clips": contender.way,
                "clips/s": statistics.median(cost.clips_per_second for cost in own),
                "over frames": statistics.median(
                    cost.clips_per_second / frames.clips_per_second for cost, frames in zip(own, other, strict=True)
                ),
                "waiting": statistics.median(cost.waiting for cost in own),
                "read MB": stored_bytes(read, opened) / 1e6,
                "on disk MB": disk_bytes(workspace, read, fold, vocabulary, opened) / 1e6,
            }
        )
    return rows


def main(
    workspace: Annotated[Path, typer.Argument(help="project with features, splits and tokens")],
    fold: Annotated[str, typer.Option()] = "1",
    vocabulary: Annotated[str, typer.Option()] = "bands",
    clips: Annotated[int, typer.Option(help="training clips of a round")] = 64,
    batch_size: Annotated[int, typer.Option(help="clips per step")] = 32,
    repeats: int = 3,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure training on tokens and on frames."""
    rows = run(workspace, fold, vocabulary, clips=clips, batch_size=batch_size, repeats=repeats)
    report("encoders", f"epochs of {clips} clips, one thread, medians of {repeats}", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
