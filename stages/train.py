"""Train one model on the training clips of one fold.

    clips + split + (spectrogram | tokens + vocabulary, pretrained) -> models/<model>/<fold>/<seed>, results/train/<the same>

A model that reads tokens is called <entry of `models`>-<vocabulary>, with "-pretrained" behind it where it starts from what
`pretrain` wrote. The second output holds the curves, `epochs.csv`; baselines, fitted in one go, leave a note there.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import PositiveInt

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.curves import write_fitted
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import count_predicting, predicting_digest, read_card, write_model
from pipeline.artifacts.pretrained import open_pretrained
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import TRAINING_THREADS, use_threads
from pipeline.models.base import InputFacts, ModelParams
from pipeline.models.baselines.base import Setting
from pipeline.models.registry import BASELINES, load_model_params
from pipeline.params import load_params, read_params
from pipeline.stage_code import read_settings
from pipeline.training.inputs import input_artifacts, open_inputs
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


def run(
    params: ModelParams,
    paths: Paths,
    *,
    model: str,
    fold: str,
    seed: int,
    num_threads: int = 1,
    trackers: tuple[str, ...] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    if params.kind in BASELINES and not launch.leads():
        return  # a baseline is fitted by one process
    report = StageReport("train", f"{model}/{fold}/{seed}")
    clips, split = open_clips(paths.clips), open_split(paths.split)
    vocabulary = open_vocabulary(paths.vocabulary) if paths.vocabulary else None
    inputs = open_inputs(params.reads, paths.source, vocabulary)
    roles = {role: inputs.usable(clips_of(split, role)) for role in ("train", "validation")}
    if not roles["train"]:
        raise CorpusError(f"{paths.source}: expected training clips of fold {fold} with frames, found none")
    pretrained = open_pretrained(paths.pretrained, fold=fold, source=inputs.source) if paths.pretrained else None
    targets = {role: class_targets(clips, ids) for role, ids in roles.items()}

    started, label_kind = time.perf_counter(), clips.facts["label_kind"]
    use_threads(num_threads)
    input_facts: InputFacts
    if params.kind not in BASELINES:
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
        weights = BASELINES[params.kind](params).fit(inputs.arrays(roles["train"]), targets["train"], setting)
        report.time_training(time.perf_counter() - started)
        clips_seen = len(roles["train"])
        write_fitted(paths.curves)

    facts = {"model": model, "fold": fold, "seed": seed, "reads": params.reads, "clips_seen": clips_seen} | {
        "params": params.model_dump(mode="json"),
        **{key: clips.facts[key] for key in ("classes", "label_kind")},
        "input": input_facts,
        "source": inputs.source,
        "front_end": inputs.front_end,
        "num_parameters": count_predicting(weights, epochs),
        SETTINGS: dict(settings),
    }
    write_model(paths.model, weights, facts, epochs)
    log.info(
        "%s, fold %s: %d parameters, %d clips seen in %.1f s",
        model, fold, facts["num_parameters"], clips_seen, report.timing["training_seconds"],
    )  # fmt: skip
    report.clips, report.result = len(roles["train"]), predicting_digest(read_card(paths.model))
    report.write()


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`")],
    fold: Annotated[str, typer.Option(help="whose training clips it learns from")],
    seed: Annotated[int, typer.Option()],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`, for a model that reads tokens")] = "",
    pretrained: Annotated[bool, typer.Option(help="start from what `pretrain` wrote")] = False,
) -> None:
    layout, document = Layout(), read_params()
    this = RunId.of(entry, fold, seed, vocabulary=vocabulary, pretrained=pretrained)
    params = load_model_params(entry)
    launching = load_params(launch.LaunchParams, "launch")
    if params.kind not in BASELINES:
        launch.start_processes("stages.train", launching.train_processes)
    require_current(
        document, (CLIPS, layout.clips), (SPLIT, layout.split(fold)), *input_artifacts(layout, this.model, fold)
    )
    paths = Paths(
        layout.clips,
        layout.split(fold),
        layout.source(this.model, fold),
        layout.vocabulary(vocabulary, fold) if vocabulary else None,
        layout.model(this),
        layout.curves(this),
        layout.pretrained(this) if pretrained else None,
    )
    settings = {f"models.{entry}": document["models"][entry], **read_settings(document, "train", entry)}
    run(
        params,
        paths,
        model=this.model.name,
        fold=fold,
        seed=seed,
        num_threads=load_params(PositiveInt, TRAINING_THREADS),
        trackers=tuple(launching.trackers),
        settings=settings,
    )


if __name__ == "__main__":
    stage_main(main)
