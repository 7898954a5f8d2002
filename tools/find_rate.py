"""`sonolex find-rate`: a learning-rate range test of one model, with its table and figure.

The model starts from its initial weights, random or pretrained, and sees training clips of one fold alone. Nothing but the
table and the figure is written; no artifact changes.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.artifacts.development import DEVELOPMENT, TARGETS
from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.settings import require_current
from pipeline.errors import ParamsError
from pipeline.execution.threads import use_threads
from pipeline.grid import ExperimentParams
from pipeline.models.network import NetworkParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params, read_params
from pipeline.seeding import named_seed
from pipeline.stage_code import COPIES, read_settings, retokenizes
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import input_artifacts
from pipeline.training.loop import training_options
from pipeline.training.lora import add_adapters
from pipeline.training.loss_settings import loss_link
from pipeline.training.neural import initial_network, training_task
from pipeline.training.opening import DataPaths, open_training_data
from pipeline.training.range_test import Range, RatePoint, run_range_test, suggest_rate
from pipeline.training.settings import TrainParams

_HIGHEST_DRAWN = 2.0  # times the first loss


def run(model: str, fold: str, rates: Range, out: Path) -> tuple[float | None, list[RatePoint]]:
    """Run the test for a model of the experiment, write `<out>.csv` and `<out>.png`, and return the suggestion.

    Raises ParamsError for a model or fold that the experiment has not, ArtifactError where its inputs are missing.
    """
    layout, this = Layout(), find_run(load_params(ExperimentParams, "experiment"), model, fold)
    params, settings = load_model_params(this.model.entry), load_params(TrainParams, "train")
    if not isinstance(params, NetworkParams):
        raise ParamsError(f"{model}: expected a network, which has a learning rate, found kind {params.kind}")
    points = _test(params, settings, _paths(layout, this), this, rates)
    suggested = suggest_rate(points)
    write_points(out.with_suffix(".csv"), points)
    draw(out.with_suffix(".png"), points, suggested, f"{model}, fold {this.fold}")
    return suggested, points


def find_run(experiment: ExperimentParams, model: str, fold: str) -> RunId:
    """Return the run of a model by its name in tables; without a fold that of the experiment's first. Raises ParamsError."""
    names = [known.name for known in experiment.model_ids]
    if model not in names:
        raise ParamsError(f"expected a model of the experiment, found {model}; it has: {', '.join(names)}")
    if fold and fold not in experiment.folds:
        raise ParamsError(f"--fold: expected one of {', '.join(experiment.folds)}, found {fold}")
    chosen = fold or experiment.folds[0]
    return next(run for run in experiment.runs() if run.model.name == model and run.fold == chosen)


def _paths(layout: Layout, run: RunId) -> DataPaths:
    """Return the inputs of a run. Raises ArtifactError where they were made with other settings."""
    document = read_params()
    settings = read_settings(document, "train", run.model.entry)
    paths = DataPaths(
        layout.development(run.fold),
        layout.targets(run.fold),
        layout.training_source(run.model, run.fold),
        layout.vocabulary(run.model.vocabulary, run.fold) if run.model.vocabulary else None,
        layout.pretrained(run) if run.model.pretrained else None,
        layout.found_copies() if COPIES in settings else (),
        layout.spectrogram if retokenizes(settings) else None,
    )
    inputs = input_artifacts(layout, run.model, run.fold, paths.source, paths.copies, paths.frames)
    require_current(document, (DEVELOPMENT, paths.development), (TARGETS, paths.targets), *inputs)
    return paths


def _test(params: NetworkParams, settings: TrainParams, paths: DataPaths, run: RunId, rates: Range) -> list[RatePoint]:
    use_threads(settings.num_threads)
    data, _ = open_training_data(params.reads, paths, run.fold)
    with init_distributed() as context:
        network, metadata = initial_network(params, data, loss_link(settings.loss, data.label_kind), seed=run.seed)
        network = network.to(context.device)
        if settings.lora is not None:
            torch.manual_seed(named_seed(run.seed, "adapters"))
            add_adapters(network, settings.lora)
        task, examples = training_task(settings, data, metadata["normalisation"], network.frames_read)
        with training_options(network, settings):
            return run_range_test(network, settings, task, examples, rates=rates, seed=run.seed, context=context)


def write_points(path: Path, points: Sequence[RatePoint]) -> None:
    """Write a row for each step of the test."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RatePoint._fields)
        writer.writerows([f"{value:.6g}" for value in point] for point in points)


def draw(path: Path, points: Sequence[RatePoint], suggested: float | None, title: str) -> None:
    """Draw the losses over the rate, and a line at the suggested one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    rates = [point.rate for point in points]
    axes.plot(rates, [point.loss for point in points], color="0.75", linewidth=1, label="loss of a step")
    axes.plot(rates, [point.smoothed for point in points], linewidth=2, label="smoothed")
    if suggested is not None:
        axes.axvline(suggested, color="C1", linestyle="--", label=f"suggested: {suggested:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    if points:  # where it diverges the loss may be any number, and would flatten the rest
        axes.set_ylim(0, _HIGHEST_DRAWN * points[0].smoothed)
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
