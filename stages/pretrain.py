"""Let one model learn from the sentences of one fold without their labels: it fills in words that it is not shown.

    split + tokens + vocabulary -> data/pretrained/<model>/<fold>/<seed>, results/pretrain/<model>/<fold>/<seed>

The stage runs for the models of `experiment.pretrained_models`, by default for none; `train_pretrained` goes on from here
(docs/training.md). It reads no label, and learns from no test clip. The second output holds DVCLive's curves. Under
torchrun, or with `launch.train_processes` above 1, several processes train together.
"""

import logging
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from pipeline.artifacts.pretrained import PRETRAINED
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.models.base import ModelParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params
from pipeline.training.distributed import open_world
from pipeline.training.inputs import open_sentences
from pipeline.training.pretraining import pretrain
from pipeline.training.settings import PretrainParams, TrainParams

log = logging.getLogger(__name__)


class Paths(NamedTuple):
    """What the stage reads and writes."""

    split: Path
    tokens: Path
    vocabulary: Path
    pretrained: Path
    curves: Path


def run(
    params: ModelParams,
    masking: PretrainParams,
    train: TrainParams,
    paths: Paths,
    *,
    model: str,
    fold: str,
    seed: int,
    trackers: tuple[str, ...] = (),
) -> None:
    report = StageReport("pretrain", f"{model}-{fold}-{seed}")
    split, vocabulary = open_split(paths.split), open_vocabulary(paths.vocabulary)
    inputs = open_sentences(paths.tokens, vocabulary)
    training, validation = inputs.usable(clips_of(split, "train")), inputs.usable(clips_of(split, "validation"))
    if not training:
        raise CorpusError(f"{paths.tokens}: expected sentences of training clips of fold {fold}, found none")
    paths.curves.mkdir(parents=True, exist_ok=True)
    with open_world() as world:
        weights, trained = pretrain(
            params, masking, masking.settings(train), inputs, training, validation, vocabulary,
            seed=seed, live_path=paths.curves, world=world, trackers=trackers,
        )  # fmt: skip
    if not world.leads:
        return
    last = trained.history[-1]
    facts = {
        "model": model,
        "params": params.model_dump(mode="json"),
        "pretrain": masking.model_dump(mode="json"),
        "input": inputs.facts,
        "source": inputs.source,
        "fold": fold,
        "seed": seed,
        "clips_seen": trained.clips_seen,
        "seconds": round(trained.seconds, 3),
        "measures": {name: value for name, value in last.items() if name.endswith(("loss", "accuracy"))},
    }
    PRETRAINED.write(paths.pretrained, weights, facts)
    log.info(
        "%s, fold %s: fills in %.1f %% of hidden words (the most frequent word: %.1f %%) after %.1f s",
        model, fold, 100 * last["masked_accuracy"], 100 * last["unigram_accuracy"], trained.seconds,
    )  # fmt: skip
    report.workers, report.clips = world.size, len(training)
    report.write()


def main(
    split: Path,
    tokens: Path,
    vocabulary: Annotated[Path, typer.Argument(help="<anywhere>/<its name>/<fold>.zarr")],
    pretrained: Annotated[
        Path, typer.Argument(help="folder to write: <anywhere>/<entry of `models`>-<vocabulary>/<fold>/<seed>")
    ],
    curves: Annotated[Path, typer.Argument(help="folder to write: DVCLive's logs")],
) -> None:
    name, fold, seed = pretrained.parts[-3:]
    entry = name.removesuffix(f"-{vocabulary.parent.name}")
    launching = load_params(launch.LaunchParams, "launch")
    launch.start_processes("stages.pretrain", launching.train_processes)
    run(
        load_model_params(entry),
        load_params(PretrainParams, "pretrain"),
        load_params(TrainParams, "train"),
        Paths(split, tokens, vocabulary, pretrained, curves),
        model=name,
        fold=fold,
        seed=int(seed),
        trackers=tuple(launching.trackers),
    )


if __name__ == "__main__":
    stage_main(main)
