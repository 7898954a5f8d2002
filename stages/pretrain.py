"""Stage `pretrain`: masked-token pretraining of one model on the token sequences of one fold, without labels.

    development set + its tokens + vocabulary -> {data/pretrained, results/pretrain}/<model>/<fold>/<seed>

The stage runs for the models of `experiment.pretrained_models`, by default for none; `train_pretrained` continues from its
weights (docs/training.md). It reads no labels and no test clips. The second output holds the curves. Under torchrun, or with
`launch.train_processes` above 1, several processes train together.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple

import typer

from pipeline.artifacts.development import DEVELOPMENT, open_development
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.pretrained import PRETRAINED, PretrainingMetadata
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import clips_of
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import CorpusError
from pipeline.execution import launch
from pipeline.execution.stage import StageReport, stage_main
from pipeline.execution.threads import use_threads
from pipeline.models.base import ModelParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params, read_params
from pipeline.stage_code import read_settings
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import input_artifacts, open_sequences
from pipeline.training.pretraining import pretrain
from pipeline.training.settings import PretrainParams, TrainParams

log = logging.getLogger(__name__)


class Paths(NamedTuple):
    """Paths of the stage's inputs and outputs."""

    development: Path
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
    settings: Mapping[str, object] = MappingProxyType({}),
) -> None:
    use_threads(train.num_threads)
    report = StageReport("pretrain", f"{model}/{fold}/{seed}")
    development, vocabulary = open_development(paths.development, fold=fold), open_vocabulary(paths.vocabulary)
    inputs = open_sequences(paths.tokens, vocabulary)
    inputs.require_development(development)
    training, validation = clips_of(development, "train"), clips_of(development, "validation")
    if not training:
        raise CorpusError(f"{paths.tokens}: expected token sequences of training clips of fold {fold}, found none")
    with init_distributed() as context:
        weights, trained = pretrain(
            params, masking, masking.settings(train), inputs, training, validation, vocabulary,
            seed=seed, curves_path=paths.curves, context=context, trackers=trackers,
        )  # fmt: skip
    if not context.is_main_process:
        return
    last = trained.history[-1]
    metadata: PretrainingMetadata = {
        "model": model,
        "params": params.model_dump(mode="json"),
        "pretrain": masking.model_dump(mode="json"),
        "input": inputs.metadata,
        "source": inputs.source,
        "fold": fold,
        "seed": seed,
        "clips_seen": trained.clips_seen,
        "measures": {name: value for name, value in last.items() if name.endswith(("loss", "accuracy"))},
        SETTINGS: dict(settings),
    }
    PRETRAINED.write(paths.pretrained, weights, metadata)
    log.info(
        "%s, fold %s: predicts %.1f %% of masked tokens (the most frequent token: %.1f %%) after %.1f s",
        model, fold, 100 * last["masked_accuracy"], 100 * last["unigram_accuracy"], trained.timing.seconds,
    )  # fmt: skip
    report.workers, report.clips = context.size, len(training)
    report.time_training(*trained.timing)
    report.write()


def main(
    entry: Annotated[str, typer.Argument(help="entry of `models`")],
    vocabulary: Annotated[str, typer.Option(help="entry of `vocabularies`")],
    fold: Annotated[str, typer.Option(help="fold whose training clips it is trained on")],
    seed: Annotated[int, typer.Option()],
) -> None:
    layout, this, document = Layout(), RunId.of(entry, fold, seed, vocabulary=vocabulary), read_params()
    launching = load_params(launch.LaunchParams, "launch")
    launch.start_processes("stages.pretrain", launching.train_processes)
    development, tokens = layout.development(fold), layout.development_tokens(vocabulary, fold)
    require_current(document, (DEVELOPMENT, development), *input_artifacts(layout, this.model, fold, tokens))
    sections = {"pretrain": document["pretrain"], f"models.{entry}": document["models"][entry]}
    run(
        load_model_params(entry),
        load_params(PretrainParams, "pretrain"),
        load_params(TrainParams, "train"),
        Paths(
            development,
            tokens,
            layout.vocabulary(vocabulary, fold),
            layout.pretrained(this),
            layout.pretraining_curves(this),
        ),
        model=this.model.name,
        fold=fold,
        seed=seed,
        trackers=tuple(launching.trackers),
        settings=sections | read_settings(document, "pretrain", entry),
    )


if __name__ == "__main__":
    stage_main(main)
