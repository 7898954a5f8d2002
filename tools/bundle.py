"""`sonolex bundle`: write a trained model or an ensemble as one folder to hand over.

    sonolex bundle ast --out ast-esc10
    sonolex bundle ensemble --folds all --out ensemble-esc10

The folder needs neither `data/` nor params.yaml; `sonolex predict` and `sonolex.load` use it.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import open_model
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import SonolexError
from pipeline.evaluation.metric_functions import DECISION_THRESHOLD
from pipeline.grid import ExperimentParams
from pipeline.inference.bundle import require_members, write_bundle
from pipeline.inference.classifier import Member
from pipeline.params import load_params

ALL_FOLDS = "all"

_PACKAGES = ("sonolex", "numpy", "soxr", "torch", "faiss-cpu")  # whose releases a bundle states


def run(name: str, out: Path, *, folds: Sequence[str], params_path: Path, layout: Layout, console: Console) -> None:
    """Write the bundle. Raises SonolexError for a name or a fold that the experiment has not, and for an existing `out`."""
    if out.exists():
        raise SonolexError(f"{out}: expected no file of this name, found one; choose another --out, or remove it")
    experiment = load_params(ExperimentParams, "experiment", params_path)
    runs = _runs(experiment, name, _folds(experiment, folds))
    members = [_member(layout, run) for run in runs]
    require_members(members)
    metadata = members[0].model.metadata
    card = {
        "name": name,
        "classes": metadata["classes"],
        "label_kind": metadata["label_kind"],
        "thresholds": [DECISION_THRESHOLD] * len(metadata["classes"]),
        "members": [{"model": run.model.name, "folds": [run.fold], "seed": run.seed} for run in runs],
        "licence": "",
        "releases": {package: version(package) for package in _PACKAGES},
        "params": {},
        "metrics": {},
    }
    write_bundle(out, members, card, f"# {name}\n")
    console.print(f"{out}: {len(members)} model{'s' if len(members) > 1 else ''}, {len(metadata['classes'])} classes")


def _folds(experiment: ExperimentParams, wanted: Sequence[str]) -> list[str]:
    if list(wanted) == [ALL_FOLDS]:
        return experiment.folds
    chosen = list(wanted) or experiment.folds[:1]
    if unknown := [fold for fold in chosen if fold not in experiment.folds]:
        raise SonolexError(
            f"--folds: expected folds of the experiment ({', '.join(experiment.folds)}) or {ALL_FOLDS}, found "
            f"{', '.join(unknown)}"
        )
    return chosen


def _runs(experiment: ExperimentParams, name: str, folds: Sequence[str]) -> list[RunId]:
    ensembles = {ensemble.name: ensemble.models for ensemble in experiment.ensembles}
    models = ensembles.get(name, [name])
    runs = [run for run in experiment.runs() if run.model.name in models and run.fold in folds]
    if not runs:
        known = ", ".join([*experiment.models, *ensembles])
        raise SonolexError(f"{name}: expected a model or an ensemble of the experiment ({known})")
    return runs


def _member(layout: Layout, run: RunId) -> Member:
    vocabulary = run.model.vocabulary
    return Member(
        open_model(layout.model(run)),
        open_vocabulary(layout.vocabulary(vocabulary, run.fold)) if vocabulary else None,
    )
