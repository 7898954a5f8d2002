"""Stage `train`: train one model on the training clips of one fold.

    development set + (its frames | its tokens + vocabulary, pretrained) -> {models, results/train}/<model>/<fold>/<seed>

The name of a model that reads tokens is <entry of `models`>-<vocabulary>, with the suffix "-pretrained" where it is
initialised by the stage `pretrain`. With `train.augmentation.retokenize` it reads frames too. The second output holds the
curves, `epochs.csv`, or for baselines a note.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple

import typer
from pydantic import PositiveInt

from pipeline.artifacts.development import DEVELOPMENT, TARGETS
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import ModelMetadata, count_predicting, predicting_digest, read_card, write_model
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import TRAINING_THREADS, use_threads
from pipeline.models.base import ModelParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params, read_params
from pipeline.stage_code import COPIES, read_settings, retokenizes
from pipeline.training.inputs import input_artifacts
from pipeline.training.opening import DataPaths, open_training_data
from pipeline.training.trainers import TRAINERS, way_of

log = logging.getLogger(__name__)


class Paths(NamedTuple):
    """Paths of the stage's inputs and outputs."""

    development: Path
    targets: Path
    source: Path
    vocabulary: Path | None
    model: Path
    curves: Path
    pretrained: Path | None = None
    copies: tuple[Path, ...] = ()
    frames: Path | None = None

    @property
    def data(self) -> DataPaths:
        """Return the inputs alone."""
        return DataPaths(
            self.development, self.targets, self.source, self.vocabulary, self.pretrained, self.copies, self.frames
        )


def run(
    params: ModelParams,
    paths: Paths,
    *,
    model: str,
    fold: str,
    seed: int,
    num_threads: int = 1,
    trackers: tuple[str, ...] = (),
    settings: Mapping[str, object] = MappingProxyType({}),
) -> None:
    report = StageReport("train", f"{model}/{fold}/{seed}")
    use_threads(num_threads)
    data, targets = open_training_data(params.reads, paths.data, fold)
    fitted = TRAINERS[way_of(params.kind)].train(
        params,
        data,
        seed=seed,
        curves_path=paths.curves,
        score=epoch_scorer(data.label_kind),
        trackers=trackers,
    )
    if fitted is None:
        return  # another process writes
    metadata: ModelMetadata = {
        "model": model, "fold": fold, "seed": seed, "reads": params.reads,
        "params": params.model_dump(mode="json"),
        "classes": targets.metadata["classes"],
        "label_kind": data.label_kind, "link": fitted.link,
        "input": fitted.input_metadata,
        "clips_seen": fitted.clips_seen,
        "source": data.inputs.source,
        "front_end": data.inputs.front_end,
        "num_parameters": count_predicting(fitted.weights, fitted.kept_epochs),
        SETTINGS: dict(settings),
    }  # fmt: skip
    write_model(paths.model, fitted.weights, metadata, fitted.kept_epochs)
    log.info(
        "%s, fold %s: %d parameters, %d clips seen in %.1f s",
        model, fold, metadata["num_parameters"], fitted.clips_seen, fitted.seconds,
    )  # fmt: skip
    report.time_training(fitted.seconds, fitted.epoch_timing)
    report.clips, report.workers = len(data.training.clip_ids), fitted.num_processes
    report.result = predicting_digest(read_card(paths.model))
    report.write()


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`")],
    fold: Annotated[str, typer.Option(help="fold whose training clips it is trained on")],
    seed: Annotated[int, typer.Option()],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`, for a model that reads tokens")] = "",
    pretrained: Annotated[bool, typer.Option(help="initialise with the weights of `pretrain`")] = False,
) -> None:
    layout, document = Layout(), read_params()
    this = RunId.of(entry, fold, seed, vocabulary=vocabulary, pretrained=pretrained)
    params = load_model_params(entry)
    settings = {f"models.{entry}": document["models"][entry], **read_settings(document, "train", entry)}
    launching = load_params(launch.LaunchParams, "launch")
    if way_of(params.kind) == "network":
        launch.start_processes("stages.train", launching.train_processes)
    paths = Paths(
        layout.development(fold),
        layout.targets(fold),
        layout.training_source(this.model, fold),
        layout.vocabulary(vocabulary, fold) if vocabulary else None,
        layout.model(this),
        layout.curves(this),
        layout.pretrained(this) if pretrained else None,
        layout.found_copies() if COPIES in settings else (),
        layout.spectrogram if retokenizes(settings) else None,
    )
    inputs = input_artifacts(layout, this.model, fold, paths.source, paths.copies, paths.frames)
    require_current(document, (DEVELOPMENT, paths.development), (TARGETS, paths.targets), *inputs)
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
