"""Stage `network`: hand a fold's trained network over to the vocabulary of its hidden states.

models/<model>/<fold>/<first seed> -> data/supervision/<name>/<fold>/network

The stage runs for the vocabularies of `experiment.learned_vocabularies`, by default for none. A network that reads tokens
comes with its own vocabulary, so that its folder turns frames into hidden states without anything else. That vocabulary is
no dependency in dvc.yaml, as a matrix cannot choose one, and needs not be: the model was trained after it, and names its
digest.
"""

import logging
import shutil
from typing import Annotated

import typer

from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import MODEL, copy_model, open_model
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.vocabulary import TOKENIZER
from pipeline.evaluation.hidden_states import require_layer
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.tokenizing import OUTPUT
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params
from pipeline.vocabulary.registry import load_vocabulary_params
from pipeline.vocabulary.settings import HiddenStateParams

log = logging.getLogger(__name__)


def run(layout: Layout, params: HiddenStateParams, name: str, source: RunId) -> StageReport:
    """Copy the network of a run, with the vocabulary that it reads. Raises SonolexError for a layer that it has not."""
    report = StageReport("network", f"{name}-{source.fold}")
    model, target = open_model(layout.model(source)), layout.network(name, source.fold)
    layer = params.layer or OUTPUT
    require_layer(build_network(model), layer)
    with replacing(target) as partial:
        copy_model(model, partial)
        if source.model.vocabulary:
            shutil.copytree(layout.vocabulary(source.model.vocabulary, source.fold), partial / TOKENIZER)
    report.bytes_written = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log.info("%s, fold %s: layer %s of %s -> %s", name, source.fold, layer, source.name, target)
    return report


def main(
    name: Annotated[str, typer.Argument(help="entry of `vocabularies` with features.hidden_states")],
    fold: Annotated[str, typer.Option(help="fold whose network it is")],
) -> None:
    layout, grid = Layout(), load_params(ExperimentParams, "experiment")
    params: HiddenStateParams = load_vocabulary_params(name).hidden_states
    source = RunId(grid.model(params.model), fold, grid.seeds[0])
    require_current(read_params(), (MODEL, layout.model(source)))
    run(layout, params, name, source).write()


if __name__ == "__main__":
    stage_main(main)
