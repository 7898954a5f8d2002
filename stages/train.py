"""Train one model on the training clips of one fold.

    clips + split + (spectrogram | tokens + vocabulary, pretrained) -> models/<model>/<fold>/<seed>, results/train/<the same>

A model that reads tokens is called <entry of `models`>-<vocabulary>, with "-pretrained" behind it where it starts from what
`pretrain` wrote. The second output holds the curves, `epochs.csv`; baselines, fitted in one go, leave a note there.
"""

import logging
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.curves import write_fitted
from pipeline.artifacts.model import count_predicting, predicting_digest, read_card, write_model
from pipeline.artifacts.pretrained import open_pretrained
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.models.baseline import Setting
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
    pretrained: Path | None = None


def run(params: Any, paths: Paths, *, model: str, fold: str, seed: int, trackers: tuple[str, ...] = ()) -> None:
    if not is_neural(params.kind) and not launch.leads():
        return  # a baseline is fitted by one process
    report = StageReport("train", f"{model}/{fold}/{seed}")
    clips, split = open_clips(paths.clips), open_split(paths.split)
    module, vocabulary = model_module(params.kind), open_vocabulary(paths.vocabulary) if paths.vocabulary else None
    inputs = open_inputs(module.READS, paths.source, vocabulary)
    roles = {role: inputs.usable(clips_of(split, role)) for role in ("train", "validation")}
    if not roles["train"]:
        raise CorpusError(f"{paths.source}: expected training clips of fold {fold} with frames, found none")
    pretrained = open_pretrained(paths.pretrained, fold=fold, source=inputs.source) if paths.pretrained else None
    targets = {role: class_targets(clips, ids) for role, ids in roles.items()}

    started, label_kind = time.perf_counter(), clips.facts["label_kind"]
    if is_neural(params.kind):
        from pipeline.training.distributed import open_world  # baselines start without torch
        from pipeline.training.neural import Part, train_model
        from pipeline.training.settings import TrainParams

        parts = {role: Part(ids, targets[role]) for role, ids in roles.items()}
        with open_world() as world:
            weights, epochs, input_facts, trained = train_model(
                params, load_params(TrainParams, "train"), inputs, parts["train"], parts["validation"], vocabulary,
                label_kind=label_kind, seed=seed, curves_path=paths.curves, world=world,
                score=epoch_scorer(label_kind), pretrained=pretrained, trackers=trackers,
            )  # fmt: skip
        if not world.leads:
            return
        report.workers, clips_seen = world.size, trained.clips_seen
        report.time_training(*trained.timing)
    else:
        input_facts, epochs = inputs.facts, {}
        setting = Setting(input_facts, inputs.front_end, label_kind, seed, vocabulary)
        weights = module.fit(params, inputs.arrays(roles["train"]), targets["train"], setting)
        report.time_training(time.perf_counter() - started)
        clips_seen = len(roles["train"])
        write_fitted(paths.curves)

    facts = {"model": model, "fold": fold, "seed": seed, "reads": module.READS, "clips_seen": clips_seen} | {
        "params": params.model_dump(mode="json"),
        **{key: clips.facts[key] for key in ("classes", "label_kind")},
        "input": input_facts,
        "source": inputs.source,
        "front_end": inputs.front_end,
        "num_parameters": count_predicting(weights, epochs),
    }
    write_model(paths.model, weights, facts, epochs)
    log.info("%s, fold %s: %d parameters, %d clips seen", model, fold, facts["num_parameters"], clips_seen)
    report.clips, report.result = len(roles["train"]), predicting_digest(read_card(paths.model))
    report.write()


def main(
    clips: Path,
    split: Path,
    source: Annotated[Path, typer.Argument(help="the spectrogram, or the fold's tokens")],
    model: Annotated[Path, typer.Argument(help="folder to write: <anywhere>/<name>/<fold>/<seed>")],
    curves: Annotated[Path, typer.Argument(help="folder to write: curves")],
    vocabulary: Annotated[Path | None, typer.Option(help="<anywhere>/<its name>/<fold>.zarr, with tokens")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="what `pretrain` wrote, to start from")] = None,
) -> None:
    name, fold, seed = model.parts[-3:]
    entry = name.removesuffix("-pretrained") if pretrained else name
    params: Any = load_model_params(entry.removesuffix(f"-{vocabulary.parent.name}") if vocabulary else entry)
    launching = load_params(launch.LaunchParams, "launch")
    if is_neural(params.kind):
        launch.start_processes("stages.train", launching.train_processes)
    paths, trackers = Paths(clips, split, source, vocabulary, model, curves, pretrained), tuple(launching.trackers)
    run(params, paths, model=name, fold=fold, seed=int(seed), trackers=trackers)


if __name__ == "__main__":
    stage_main(main)
