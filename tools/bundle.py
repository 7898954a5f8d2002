"""`sonolex bundle`: write a trained model, an ensemble or a published checkpoint as one folder to hand over.

    sonolex bundle ast --out ast-esc10
    sonolex bundle ensemble --folds all --out ensemble-esc10
    sonolex bundle ast --retrain --out ast-esc10-all
    sonolex bundle --checkpoint ast-finetuned-audioset --out ast-audioset
    sonolex bundle --checkpoint audioset_10_10_0.4495.pth --checkpoint audioset_12_12_0.4467.pth --out ensemble

The folder needs neither `data/` nor params.yaml; `sonolex.load` and the commands that take a model use it (docs/bundles.md).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.layout import ALL_SEEDS, Layout, ModelId, RunId
from pipeline.artifacts.model import open_model, predicting_digest
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable, open_predictions
from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.thresholds import open_thresholds
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.corpora.base import corpus_name
from pipeline.errors import SonolexError
from pipeline.evaluation.ensemble import average_predictions
from pipeline.evaluation.metric_functions import DECISION_THRESHOLD
from pipeline.evaluation.metrics import evaluate_clips
from pipeline.grid import ExperimentParams
from pipeline.inference.bundle import (
    BundleContent,
    FoldMetrics,
    Origin,
    TrainingClips,
    external_tokens_error,
    require_members,
    write_bundle,
)
from pipeline.inference.classifier import Classifier, Member
from pipeline.params import load_params
from pipeline.reporting.measuring import measure
from pipeline.reporting.model_card import model_card
from pipeline.vocabulary.registry import load_vocabulary_params
from tools.provenance import installed_releases, made_from, training_releases
from tools.staleness import note

ALL_FOLDS = "all"

_DIGITS = 6  # of metrics, as in summary.csv
_UNKNOWN_CLIPS = TrainingClips(corpus="", licence="", clips=0, seconds=0.0, shortest=0.0, longest=0.0)


def require_choice(
    name: str, checkpoints: Sequence[Path], classes: Path | None, folds: Sequence[str], *, retrain: bool
) -> None:
    """Raise SonolexError for options that do not go together."""
    if (not checkpoints) == (not name):
        found = "both" if name else "neither"
        raise SonolexError(
            f"sonolex bundle: expected a model or an ensemble, or --checkpoint PATH, found {found}; name one of them"
        )
    if not checkpoints and classes is not None:
        raise SonolexError(
            "--classes: expected it with --checkpoint alone, since a model has its own classes; leave it out"
        )
    if checkpoints and (folds or retrain):
        raise SonolexError(
            "--checkpoint: expected neither --folds nor --retrain with it, since it is not trained here; leave them out"
        )
    if retrain and folds:
        raise SonolexError(
            f"--folds: expected none with --retrain, which trains on the clips of all folds, found {', '.join(folds)}; "
            "leave out one of the two"
        )


def run(
    name: str,
    out: Path,
    *,
    folds: Sequence[str] = (),
    retrain: bool = False,
    licence: str = "",
    params_path: Path,
    layout: Layout,
    console: Console,
) -> None:
    """Write the bundle of a model or an ensemble.

    Raises SonolexError for a name or a fold that the experiment has not, for an existing `out`, and where a model or its
    predictions are missing.
    """
    _require_free(out)
    experiment = load_params(ExperimentParams, "experiment", params_path)
    models = _models(experiment, name)
    for vocabulary in filter(None, (model.vocabulary for model in models)):
        if not load_vocabulary_params(vocabulary, params_path).computable:
            raise external_tokens_error(name)
    if retrain:
        from tools.retraining import FOLD, retrained  # imports torch

        runs = [RunId(model, FOLD, experiment.seeds[0]) for model in models]
        with retrained(models, experiment.seeds[0], layout, params_path) as workspace:
            _write(out, name, "retrained", runs, workspace, layout, licence)
    else:
        wanted = _folds(experiment, folds)
        runs = [run for run in experiment.runs() if run.model in models and run.fold in wanted]
        _write(out, name, "trained", runs, layout, layout, licence)
        if stale := note(layout, params_path):
            console.print(stale)
    console.print(
        f"{out}: {len(runs)} model{'s' * (len(runs) > 1)} of fold {', '.join(dict.fromkeys(r.fold for r in runs))}"
    )


def run_checkpoints(
    checkpoints: Sequence[Path], out: Path, *, classes: Path | None, licence: str, console: Console
) -> None:
    """Write the bundle of published checkpoints; one of several has the name of its folder.

    Raises SonolexError as `open_checkpoints` does.
    """
    from pipeline.inference.checkpoints import open_checkpoints  # imports torch

    _require_free(out)
    classifier = open_checkpoints(checkpoints, classes)
    members = classifier.members
    name = members[0].model.metadata["model"] if len(members) == 1 else out.name
    content = _content(name, "published", classifier, licence, _UNKNOWN_CLIPS)
    write_bundle(out, members, content, model_card(content, members))
    models = f", {len(members)} models" if len(members) > 1 else ""
    console.print(f"{out}: {name}{models}, {len(content['classes'])} classes, label kind {content['label_kind']}")


def _write(
    out: Path, name: str, origin: Origin, runs: Sequence[RunId], layout: Layout, project: Layout, licence: str
) -> None:
    """Write the bundle of runs in `layout`, which is that of the project or of a workspace of it."""
    members = [_member(layout, run) for run in runs]
    require_members(members)
    thresholds = _thresholds(name, origin, runs, members, project)
    classifier = Classifier(tuple(members), np.mean(list(thresholds.values()), axis=0))
    folds = list(dict.fromkeys(run.fold for run in runs))
    content = _content(name, origin, classifier, licence, _training_clips(layout, folds))
    content["made_from"] = made_from(project.root)
    content["params"] = _params(layout, members, folds[0])
    if origin == "trained":
        content["metrics"] = _metrics(layout, runs, members, thresholds)
        content["trained_with"] = _common(training_releases(layout, run) for run in runs)
    else:
        content["trained_with"] = content["releases"]
    write_bundle(out, members, content, model_card(content, members))


def _thresholds(
    name: str, origin: Origin, runs: Sequence[RunId], members: Sequence[Member], project: Layout
) -> dict[str, np.ndarray]:
    """Return the thresholds (class,) of decisions by fold; of a bundle of several folds their mean counts.

    A model that is trained on all clips has none that could fit thresholds: it takes those of all folds. Raises
    ArtifactError where there are none for these weights and classes.
    """
    about = members[0].model.metadata
    if about["label_kind"] == "one":
        return {run.fold: np.full(len(about["classes"]), DECISION_THRESHOLD) for run in runs}
    thresholds = open_thresholds(project.thresholds)
    thresholds.require_classes(about["classes"], members[0].model.path)
    if origin == "retrained":
        return thresholds.by_fold(name)
    weights: dict[str, list[str]] = {}
    for run, member in zip(runs, members, strict=True):
        weights.setdefault(run.fold, []).append(predicting_digest(member.model.metadata))
    return {fold: thresholds.of(name, fold, ALL_SEEDS, sorted(own)) for fold, own in weights.items()}


def _content(name: str, origin: Origin, classifier: Classifier, licence: str, clips: TrainingClips) -> BundleContent:
    return {
        "name": name,
        "origin": origin,
        "classes": classifier.classes,
        "label_kind": classifier.label_kind,
        "thresholds": classifier.thresholds.tolist(),
        "licence": licence,
        "releases": installed_releases(),
        "trained_with": {},
        "made_from": {},
        "params": {},
        "trained_on": clips,
        "metrics": [],
    }


def _require_free(out: Path) -> None:
    if out.exists():
        raise SonolexError(f"{out}: expected no file of this name, found one; choose another --out, or remove it")


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


def _models(experiment: ExperimentParams, name: str) -> list[ModelId]:
    ensembles = {ensemble.name: ensemble.models for ensemble in experiment.ensembles}
    names = ensembles.get(name, [name])
    models = [model for model in experiment.model_ids if model.name in names]
    if not models:
        known = ", ".join([*experiment.models, *ensembles])
        raise SonolexError(f"{name}: expected a model or an ensemble of the experiment ({known})")
    return models


def _member(layout: Layout, run: RunId) -> Member:
    vocabulary = run.model.vocabulary
    return Member(
        open_model(layout.model(run)),
        open_vocabulary(layout.vocabulary(vocabulary, run.fold)) if vocabulary else None,
    )


def _training_clips(layout: Layout, folds: Sequence[str]) -> TrainingClips:
    clips, index = open_clips(layout.clips), INDEX.open(layout.spectrogram_index)
    trained = {clip for fold in folds for clip in clips_of(open_split(layout.split(fold)), "train")}
    frames = index["num_frames"].to_numpy()
    used = frames[[clip in trained for clip in index.list("clip_id")] & (frames > 0)]
    seconds = used / index.metadata["front_end"]["frame_rate"]
    return {
        "corpus": corpus_name(clips.metadata["corpus"]),
        "licence": clips.metadata["licence"],
        "clips": len(seconds),
        "seconds": round(float(seconds.sum()), 3),
        "shortest": round(float(seconds.min()), 3),
        "longest": round(float(seconds.max()), 3),
    }


def _params(layout: Layout, members: Sequence[Member], fold: str) -> dict[str, object]:
    """Return the sections that the members follow from, as the artifacts behind them record them."""
    artifacts = ((CLIPS, layout.clips), (INDEX, layout.spectrogram_index), (SPLIT, layout.split(fold)))
    recorded: list[object] = [schema.read_metadata(path).get(SETTINGS) for schema, path in artifacts]
    for member in members:
        recorded += [member.vocabulary.metadata.get(SETTINGS)] if member.vocabulary else []
        recorded.append(member.model.metadata.get(SETTINGS))
    params: dict[str, object] = {}
    for settings in recorded:
        for key, value in settings.items() if isinstance(settings, Mapping) else ():
            _insert(params, key.split("."), value)
    return params


def _insert(params: dict[str, object], keys: Sequence[str], value: object) -> None:
    """Put a value where its key with dots says."""
    *sections, last = keys
    for key in sections:
        inner = params.setdefault(key, {})
        assert isinstance(inner, dict)
        params = inner
    params[last] = value


def _common(releases: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the releases that all runs have, or none where a run has not recorded any."""
    first, *others = releases
    return {name: release for name, release in first.items() if all(own.get(name) == release for own in others)}


def _metrics(
    layout: Layout, runs: Sequence[RunId], members: Sequence[Member], thresholds: Mapping[str, np.ndarray]
) -> list[FoldMetrics]:
    """Return the metrics of each fold's test clips, by the mean of the fold's members and the fold's thresholds."""
    tables: dict[str, list[PredictionTable]] = {}
    for run, member in zip(runs, members, strict=True):
        table = open_predictions(layout.prediction(run))
        expected = predicting_digest(member.model.metadata)
        if table.metadata["weights"] != expected:
            found = table.metadata["weights"]
            raise PREDICTIONS.error(
                table.path, "metadata weights", expected=f"{expected}, as {member.model.path}", found=found
            )
        tables.setdefault(run.fold, []).append(table)
    return [_fold_metrics(own, thresholds[fold]) for fold, own in tables.items()]


def _fold_metrics(tables: Sequence[PredictionTable], thresholds: np.ndarray) -> FoldMetrics:
    clips = replace(average_predictions(tables, "test"), thresholds=thresholds)
    measured = measure("", ALL_SEEDS, [table.metadata for table in tables], clips, evaluate_clips(clips))
    intervals = {name: [round(limit, _DIGITS) for limit in limits] for name, limits in measured.intervals.items()}
    return {
        "fold": measured.fold,
        "num_clips": measured.num_clips,
        "num_present_classes": measured.num_present_classes,
        "values": {name: round(value, _DIGITS) for name, value in measured.values.items() if math.isfinite(value)},
        "intervals": {name: limits for name, limits in intervals.items() if all(map(math.isfinite, limits))},
    }
