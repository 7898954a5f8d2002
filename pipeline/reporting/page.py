"""The report as one HTML file that needs neither a server nor a network.

Conventions: everything shown comes from artifacts, never from params.yaml, so the page says what was run and not what is
set by now. The same artifacts give the same bytes: no date, no host, no path of this machine.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.layout import RunId
from pipeline.artifacts.missing import MissingMetadata
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.splits import SplitMetadata
from pipeline.artifacts.tables import Table
from pipeline.artifacts.training_labels import TrainingLabelTable
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.corpora.base import corpus_name
from pipeline.evaluation.calibration import Reliability
from pipeline.evaluation.metric_definition import primary_metric, reported_metrics, secondary_metric
from pipeline.evaluation.ngram_perplexity import ORDERS, over_folds
from pipeline.reporting import figures, label_figures
from pipeline.reporting.bit_rates import BitRate, bit_rate_cells, compared_with
from pipeline.reporting.gallery import ClipCard
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.model_styles import model_styles
from pipeline.reporting.near_duplicates import DuplicatePairs
from pipeline.reporting.pictures import AUDIO_SECONDS
from pipeline.reporting.plots import ClassRow, TrainingCurve
from pipeline.reporting.rendering import write_html
from pipeline.reporting.several_labels import LabelResults
from pipeline.reporting.summary import (
    ModelSummary,
    defined_metrics,
    spell_seed_deviation,
    spread,
    spread_parts,
    summarise,
    table_metrics,
    uncertainty,
)
from pipeline.reporting.token_use import TokenUse, compression
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.vocabulary.rebuilding import token_spectra

TEMPLATE = "page.html.j2"

_PACKAGES = ("torch", "torchaudio", "numpy", "scipy", "zarr", "pyarrow", "faiss-cpu", "soundfile", "soxr", "dvc")
_NAMED_FAILURES = 20  # clips named under one reason
_CONFUSIONS = 3  # pairs named under a matrix

VocabularyKey = tuple[str, str]  # name, fold


@dataclass(frozen=True)
class PageContent:
    """Contents of the report page that do not follow from the experiment alone."""

    experiment: Experiment
    folds: Mapping[str, str]  # fold -> which groups of clips it holds out; "" where every clip is a group of its own
    fold_rules: Sequence[str]  # how clips got their folds
    clips: ClipTable
    missing: Table[MissingMetadata]
    duplicates: DuplicatePairs
    training_labels: TrainingLabelTable
    splits: Mapping[str, Table[SplitMetadata]]  # by fold
    spectrogram: Spectrogram
    vocabularies: Mapping[VocabularyKey, Vocabulary]  # empty without vocabularies
    tokens: Mapping[str, TokenUse]  # name of the vocabulary -> what there is to say of its tokens
    bit_rates: Sequence[BitRate]  # of every model
    curves: Mapping[str, Mapping[str, TrainingCurve] | None]  # model -> name -> curve; None: fitted in one go
    class_rows: Mapping[str, Sequence[ClassRow]]  # model -> rows
    confusions: Mapping[str, np.ndarray]  # model -> (actual, decided); empty for label kind many
    reliability: Mapping[str, Reliability]  # headline model -> of its probabilities
    label_results: Mapping[str, LabelResults]  # headline model -> results; empty for label kind one
    explained_by: Sequence[str]  # methods of the maps that the cards show: rollout, grad_cam
    examples: Sequence[ClipCard]
    mistakes: Sequence[ClipCard]


def write_page(path: Path, content: PageContent) -> None:
    """Render the report and write it in one step."""
    write_html(path, TEMPLATE, page_values(content), {})


def page_values(content: PageContent) -> dict[str, Any]:
    """Return the template's values."""
    experiment = content.experiment
    summaries = summarise(experiment.runs)
    classes = content.clips.metadata["classes"]
    settings, styles = _settings(content), model_styles(experiment.measured)
    metadata = next(iter(experiment.tables.values())).metadata
    return {
        "corpus": corpus_name(content.clips.metadata["corpus"]),
        "licence": content.clips.metadata["licence"],
        "label_kind": metadata["label_kind"],
        "classes": classes,
        "num_clips": len(content.clips),
        "params": experiment.params,
        "styles": styles,
        "folds": content.folds,
        "primary": primary_metric(metadata["label_kind"]),
        "secondary": secondary_metric(metadata["label_kind"]),
        "metrics": table_metrics(summaries),
        "all_metrics": defined_metrics(summaries),
        "summaries": summaries,
        "spread": spread,
        "spread_parts": spread_parts,
        "seed_deviation": spell_seed_deviation,
        "uncertainty": uncertainty(summaries[0]),
        "best": _best(summaries),
        "tiles": [s for s in summaries if s.model in experiment.headline or s.ensemble],
        "headline": experiment.headline,
        "ensembles": experiment.ensembles,
        "variants": experiment.variants,
        "chance": 1 / len(classes) if metadata["label_kind"] == "one" else math.nan,
        "num_present_classes": min(run.num_present_classes for run in experiment.runs),
        "fold_heads": _fold_heads(content),
        "fold_rows": _fold_rows(experiment),
        "fold_rules": content.fold_rules,
        "results_figure": figures.results_figure(summaries, experiment.runs, styles),
        "training_figure": figures.training_figure(content.curves, styles) if any(content.curves.values()) else "",
        "fitted": [model for model, curves in content.curves.items() if curves is None],
        "confusions": [
            (model, figures.confusion_figure(model, counts, classes), _largest_confusions(counts, classes))
            for model, counts in content.confusions.items()
        ],
        "class_figure": figures.class_figure(content.class_rows, styles),
        "reliability": [
            (model, figures.reliability_figure(model, own), own.error) for model, own in content.reliability.items()
        ],
        "labels": [_label_section(model, own, classes) for model, own in content.label_results.items()],
        "thresholds": _thresholds(experiment) if content.label_results else "",
        "class_rows": content.class_rows,
        "class_table": list(zip(*content.class_rows.values(), strict=True)),
        "tokens": _tokens(content),
        "bit_rates": content.bit_rates if experiment.params.reads else [],
        "bit_rate_figure": figures.bit_rate_figure(content.bit_rates, styles) if experiment.params.reads else "",
        "bit_rate_cells": bit_rate_cells,
        "compared_with": compared_with,
        "explained_by": content.explained_by,
        "audio_seconds": AUDIO_SECONDS,
        "examples": content.examples,
        "mistakes": content.mistakes,
        "duplicates": content.duplicates,
        "failures": _failures(content.spectrogram),
        "missing": _missing(content.missing),
        "front_end": content.spectrogram.metadata,
        "settings": settings,
        "digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        "versions": _versions(),
    }


def _best(summaries: Sequence[ModelSummary]) -> dict[str, float]:
    """Return the best mean of each metric, to be set in bold; NaN where none is defined."""
    best = {}
    for name, metric in reported_metrics().items():
        defined = [summary.mean[name] for summary in summaries if not math.isnan(summary.mean[name])]
        best[name] = (max if metric.higher_is_better else min)(defined, default=math.nan)
    return best


def _fold_heads(content: PageContent) -> list[tuple[str, int, str]]:
    """Return every fold, its test clips, and what it holds out."""
    runs = {run.fold: run.num_clips for run in content.experiment.runs}
    return [(fold, runs[fold], content.folds[fold]) for fold in content.experiment.params.folds]


def _fold_rows(experiment: Experiment) -> list[tuple[str, list[tuple[str, float, float, bool]]]]:
    """Return every model with (fold, primary metric, secondary one, whether the first is the fold's highest).

    Seeds are averaged.
    """
    means: dict[tuple[str, str], tuple[float, float]] = {}
    kind = experiment.runs[0].label_kind
    shown = primary_metric(kind).name, secondary_metric(kind).name
    for model, fold in product(experiment.measured, experiment.params.folds):
        runs = [run for run in experiment.runs if run.model == model and run.fold == fold]
        first, second = (sum(run.values[metric] for run in runs) / len(runs) for metric in shown)
        means[model, fold] = first, second
    folds = experiment.params.folds
    highest = {fold: max(means[model, fold][0] for model in experiment.measured) for fold in folds}
    return [
        (model, [(fold, *means[model, fold], means[model, fold][0] == highest[fold]) for fold in folds])
        for model in experiment.measured
    ]


def _largest_confusions(counts: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the pairs (actual, decided, clips) that are confused most often."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [(classes[row], classes[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]]


def _label_section(model: str, results: LabelResults, classes: Sequence[str]) -> dict[str, object]:
    """Return what the section on several labels shows of a model."""
    wrong = results.confusion - np.diag(np.diag(results.confusion))
    return {
        "model": model,
        "curves": label_figures.curves_figure(model, results, classes),
        "confusion": label_figures.label_confusion_figure(model, results, classes),
        "largest": _largest_confusions(wrong, classes),
        "scores": label_figures.histogram_figure(model, results),
        "worst": results.worst,
        "num_curves": len(label_figures.curve_classes(results)),
        "num_confused": len(label_figures.confused_classes(results)),
    }


def _thresholds(experiment: Experiment) -> str:
    """Say where thresholds come from."""
    found = experiment.thresholds
    assert found is not None
    places = {"validation": "validation clips", "inner folds": "training clips, as inner folds score them"}
    fitted = [places[source] for source in found.sources if source in places]
    low, high = found.range
    spelled = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"{spelled}, {'fitted on ' + ' and '.join(fitted) if fitted else 'as given in params.yaml'}"


def _tokens(content: PageContent) -> dict[str, object] | None:
    """Return the vocabulary's section; None without vocabularies."""
    if not content.vocabularies:
        return None
    (shown, fold), vocabulary = next(iter(content.vocabularies.items()))
    counts = {(name, f): counts for name, tokens in content.tokens.items() for f, counts in tokens.counts.items()}
    drawn = {
        f"{name}, fold {f}" if len(content.tokens) > 1 else f"fold {f}": (name, f)
        for name, f in counts
        if f == fold or len(content.tokens) == 1
    }
    slopes = {label: float(content.tokens[name].statistics[f].zipf_slope) for label, (name, f) in drawn.items()}
    perplexity = over_folds(content.tokens[shown].perplexity.values())
    return {
        "metadata": vocabulary.metadata,
        "kinds": {name: v.metadata for (name, f), v in content.vocabularies.items() if f == fold},
        "rows": [((name, f), row) for name, tokens in content.tokens.items() for f, row in tokens.statistics.items()],
        "samples": {fold: v.metadata["sample"] for (name, fold), v in content.vocabularies.items() if name == shown},
        "rank_figure": figures.rank_figure({label: counts[key] for label, key in drawn.items()}, slopes),
        "codebook_figure": figures.codebook_figure(
            log_mel_part(token_spectra(vocabulary, 0), vocabulary.metadata["front_end"])
        ),
        "codebook_fold": fold,
        "codebook_name": shown,
        "merged": [_merged(content, name) for name, tokens in content.tokens.items() if tokens.merged_lengths],
        "orders": ORDERS,
        "perplexity": perplexity,
        "perplexity_figure": figures.perplexity_figure(perplexity),
    }


def _merged(content: PageContent, name: str) -> dict[str, object]:
    """Return what the vocabulary's section says of the merged tokens of a vocabulary with byte-pair encoding."""
    lengths = content.tokens[name].merged_lengths
    metadata = {fold: content.vocabularies[name, fold].metadata["bpe"] for fold in lengths}
    return {
        "name": name,
        "num_tokens": next(iter(metadata.values()))["num_tokens"],
        "rows": [(fold, metadata[fold]["compression"], compression(shares)) for fold, shares in lengths.items()],
        "figure": figures.length_figure(lengths),
    }


def _missing(missing: Table[MissingMetadata]) -> list[tuple[str, int, int]]:
    """Return set, clips that the corpus lists in it, and those of them without audio; sets with such clips alone."""
    counts = Counter(missing.list("set"))
    return [(name, num_listed, counts[name]) for name, num_listed in missing.metadata["listed"].items() if counts[name]]


def _failures(spectrogram: Spectrogram) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Return reason, clips, and the first of them with their messages; the most frequent reason first."""
    index = spectrogram.index
    rows = zip(*(index.list(name) for name in ("clip_id", "status", "reason", "message")), strict=True)
    failed = [(clip, reason, message) for clip, status, reason, message in rows if status == "failed"]
    return [
        (reason, count, [(clip, message) for clip, r, message in failed if r == reason][:_NAMED_FAILURES])
        for reason, count in Counter(reason for _, reason, _ in failed).most_common()
    ]


def _settings(content: PageContent) -> dict[str, Any]:
    """Return what the artifacts say they were made with; the digest of it names the experiment."""
    experiment = content.experiment
    fold = experiment.params.folds[0]
    settings: dict[str, Any] = {
        "experiment": experiment.params.model_dump(),
        "corpus": {name: content.clips.metadata[name] for name in ("corpus", "label_kind")},
        "spectrogram": content.spectrogram.metadata,
        "models": {
            model.name: experiment.tables[RunId(model, fold, experiment.params.seeds[0])].metadata["params"]
            for model in experiment.params.model_ids
        },
    }
    keys = ("kind", "num_tokens", "num_codebooks", "normalisation", "features", "bpe", "seed")
    settings["vocabularies"] = {
        name: {key: vocabulary.metadata.get(key) for key in keys}
        for (name, _), vocabulary in content.vocabularies.items()
    }
    return settings


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:  # for example faiss-gpu in the place of faiss-cpu
            continue
    return found
