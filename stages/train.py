"""Train one model on the training clips of one fold.

    clips + split + (spectrogram | tokens + vocabulary) -> models/<model>/<fold>/<seed>, results/train/<model>/<fold>/<seed>

The second output holds DVCLive's curves, and their table. Baselines are fitted in one go and leave it empty but for a note.
Under torchrun, or with `launch.train_processes` above 1, several processes train a neural model (docs/training.md).
"""

import logging
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.model import count_predicting, write_model
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.models.registry import is_neural, load_model_params, model_module
from pipeline.params import load_params
from pipeline.training.inputs import open_inputs
from pipeline.training.targets import class_targets

log = logging.getLogger(__name__)


class Paths(NamedTuple):
    """What the stage reads and writes."""

    clips: Path
    split: Path
    source: Path
    vocabulary: Path | None
    model: Path
    curves: Path


def run(params: Any, paths: Paths, *, model: str, fold: str, seed: int) -> None:
    if not is_neural(params.kind) and not launch.leads():
        return  # a baseline is fitted by one process
    report = StageReport("train", f"{model}-{fold}-{seed}")
    clips, split = open_clips(paths.clips), open_split(paths.split)
    vocabulary = open_vocabulary(paths.vocabulary) if paths.vocabulary else None
    module = model_module(params.kind)
    inputs = open_inputs(module.READS, paths.source, vocabulary)
    roles = {role: inputs.usable(clips_of(split, role)) for role in ("train", "validation")}
    if not roles["train"]:
        raise CorpusError(f"{paths.source}: expected training clips of fold {fold} with frames, found none")
    targets = {role: class_targets(clips, ids) for role, ids in roles.items()}
    paths.curves.mkdir(parents=True, exist_ok=True)

    started, label_kind = time.perf_counter(), clips.facts["label_kind"]
    if is_neural(params.kind):
        from pipeline.training.distributed import open_world  # baselines start without torch
        from pipeline.training.neural import Part, train_model
        from pipeline.training.settings import TrainParams

        settings = load_params(TrainParams, "train")
        training, validation = (Part(roles[role], targets[role]) for role in ("train", "validation"))
        with open_world() as world:
            weights, epochs, input_facts, trained = train_model(
                params, settings, inputs, training, validation, vocabulary,
                label_kind=label_kind, seed=seed, live_path=paths.curves, world=world, score=epoch_scorer(label_kind),
            )  # fmt: skip
        if not world.leads:
            return
        report.workers, seconds, clips_seen = world.size, trained.seconds, trained.clips_seen
    else:
        arrays, input_facts = inputs.arrays(roles["train"]), inputs.facts
        weights, epochs = (
            module.fit(params, arrays, targets["train"], input_facts=input_facts, label_kind=label_kind, seed=seed), {},
        )  # fmt: skip
        (paths.curves / "fitted.txt").write_text("Fitted in one go: there are no curves.\n")
        seconds, clips_seen = time.perf_counter() - started, len(arrays)

    num_parameters = count_predicting(weights, epochs)
    facts = {
        "model": model,
        "params": params.model_dump(mode="json"),
        "classes": clips.facts["classes"],
        "label_kind": label_kind,
        "reads": module.READS,
        "input": input_facts,
        "source": inputs.source,
        "front_end": inputs.front_end,
        "fold": fold,
        "seed": seed,
        "num_parameters": num_parameters,
        "clips_seen": clips_seen,
        "seconds": round(seconds, 3),
    }
    write_model(paths.model, weights, facts, epochs)
    log.info("%s, fold %s: %d parameters, %d clips seen in %.1f s", model, fold, num_parameters, clips_seen, seconds)
    report.clips = len(roles["train"])
    report.write()


def main(
    clips: Path,
    split: Path,
    source: Annotated[Path, typer.Argument(help="the spectrogram, or the fold's tokens")],
    model: Annotated[Path, typer.Argument(help="folder to write: <anywhere>/<entry of `models`>/<fold>/<seed>")],
    curves: Annotated[Path, typer.Argument(help="folder to write: DVCLive's logs")],
    vocabulary: Annotated[Path | None, typer.Option(help="the fold's vocabulary, with tokens")] = None,
) -> None:
    name, fold, seed = model.parts[-3:]
    params: Any = load_model_params(name)
    if is_neural(params.kind):
        launch.start_processes("stages.train", load_params(launch.LaunchParams, "launch").train_processes)
    paths = Paths(clips, split, source, vocabulary, model, curves)
    run(params, paths, model=name, fold=fold, seed=int(seed))


if __name__ == "__main__":
    stage_main(main)
