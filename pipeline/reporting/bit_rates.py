"""Scores of models on tokens against the same models on frames, by the bit rate of what they read, as a table.

The form is that of DASB (Mousavi et al., 2024, "DASB: Discrete Audio and Speech Benchmark", arXiv 2406.14294): for each
tokenizer its bit rate, token rate and codebooks, the score of a model on its tokens, that of the same model on continuous
features, and the difference. Models are the same where their sections of params.yaml differ in `input` alone;
`report.references` compares others, and the table says so.

Conventions: rates are counts of tokens in test clips over the seconds of their frames, means over folds. Bits are those of
a code of fixed length, log2(size) a token, and beside them the entropy of single tokens; of frames they are those of the
stored values. A difference is the score on tokens less the score on frames, so that negative is a loss. NaN means undefined.
"""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import ModelId, RunId
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.errors import ArtifactError, SonolexError
from pipeline.evaluation.metric_definition import primary_metric, reported_metrics
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.report_settings import ReferenceParams
from pipeline.reporting.summary import Run
from pipeline.reporting.token_use import TokenRate


@dataclass(frozen=True)
class BitRate:
    """A model, the rates of what it reads, and what it scores less or more than on frames: a row of `bit_rates.csv`."""

    corpus: str
    model: str
    entry: str  # of `models`
    vocabulary: str  # entry of `vocabularies`; empty = frames
    num_codebooks: int  # 0 = frames
    num_tokens: int  # of a codebook; 0 = frames
    tokens_per_second: float  # over all codebooks; of frames, frames
    bits_per_second: float  # of a code of fixed length
    entropy_per_second: float  # bits: the entropy of single tokens; NaN for frames
    metric: str  # of the scores
    score: float
    score_deviation: float  # between folds
    reference: str  # model on frames that it is compared with; empty = none
    same_model: bool  # whether the two differ in their input alone
    reference_score: float
    difference: float  # of the scores, mean over folds
    difference_deviation: float  # between folds, of their differences


def measure_bit_rates(
    experiment: Experiment,
    references: Sequence[ReferenceParams],
    rates: Mapping[str, Sequence[TokenRate]],
    frames: SpectrogramMetadata,
    corpus: str,
) -> list[BitRate]:
    """Return a row a model: those on frames, then those on tokens, each entry's in the order of their bit rates.

    `rates` are those of each vocabulary's tokens, one a fold.
    """
    models = experiment.params.model_ids
    sections = {model: _section(experiment, model) for model in models}
    on_frames = {model.name: section for model, section in sections.items() if not model.vocabulary}
    rows = []
    for model in models:
        rate = _mean_rate(rates[model.vocabulary]) if model.vocabulary else frame_rate(frames)
        same = (
            []
            if model.pretrained
            else [name for name, other in on_frames.items() if differ_in_input_alone(sections[model], other)]
        )
        named = [row.frames for row in references if row.tokens == model.entry]
        reference = [*named, *same, ""][0] if model.vocabulary else ""
        rows.append(_row(experiment.runs, model, rate, reference, reference in same, corpus))
    entries = [model.entry for model in models]
    return sorted(rows, key=lambda row: (bool(row.vocabulary), entries.index(row.entry), row.bits_per_second))


def differ_in_input_alone(section: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Say whether two sections have an input and differ in nothing else."""
    both = "input" in section and "input" in other
    return both and _without_input(section) == _without_input(other)


def _without_input(section: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in section.items() if key != "input"}


def _section(experiment: Experiment, model: ModelId) -> Mapping[str, object]:
    """Return the section of a model, as its predictions have it."""
    run = RunId(model, experiment.params.folds[0], experiment.params.seeds[0])
    section: Mapping[str, object] = experiment.tables[run].metadata["params"]
    return section


def frame_rate(frames: SpectrogramMetadata) -> TokenRate:
    """Return the rates of frames, with the bits of their values as stored."""
    bits = 8 * np.dtype(frames["dtype"]).itemsize * frames["n_mels"]
    return TokenRate(0, 0, frames["frame_rate"], frames["frame_rate"] * bits, math.nan)


def _mean_rate(rates: Sequence[TokenRate]) -> TokenRate:
    """Return the mean of the rates of folds."""
    columns = ("tokens_per_second", "bits_per_second", "entropy_per_second")
    means = (statistics.fmean(getattr(rate, column) for rate in rates) for column in columns)
    return TokenRate(rates[0].num_codebooks, rates[0].num_tokens, *means)


def _row(runs: Sequence[Run], model: ModelId, rate: TokenRate, reference: str, same: bool, corpus: str) -> BitRate:
    metric = primary_metric(runs[0].label_kind).name
    own, other = _scores(runs, model.name, metric), _scores(runs, reference, metric)
    differences = [own[fold] - other[fold] for fold in own if fold in other]
    return BitRate(
        corpus=corpus,
        model=model.name,
        entry=model.entry,
        vocabulary=model.vocabulary,
        **asdict(rate),
        metric=metric,
        score=_mean(list(own.values())),
        score_deviation=_deviation(list(own.values())),
        reference=reference,
        same_model=same,
        reference_score=_mean(list(other.values())),
        difference=_mean(differences),
        difference_deviation=_deviation(differences),
    )


def _scores(runs: Sequence[Run], model: str, metric: str) -> dict[str, float]:
    """Return fold -> a model's score, mean over seeds; empty for a model that there is not."""
    own = [run for run in runs if run.model == model]
    return {
        fold: statistics.fmean(run.values[metric] for run in own if run.fold == fold)
        for fold in dict.fromkeys(run.fold for run in own)
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def spell_rate(rate: float) -> str:
    """Return a rate per second, in whole numbers from 10 on: tokens of hidden states may be fewer than one a second."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def bit_rate_cells(row: BitRate) -> tuple[str, ...]:
    """Spell a row's codebooks, tokens, bits, entropy and bytes a second, score, score on frames, and difference in points.

    What there is not is "".
    """
    metric, undefined = reported_metrics()[row.metric], math.isnan(row.difference)
    deviation = "" if math.isnan(row.difference_deviation) else f" ± {100 * row.difference_deviation:.1f}"
    return (
        f"{row.num_codebooks} × {row.num_tokens:,}" if row.vocabulary else "",
        spell_rate(row.tokens_per_second),
        spell_rate(row.bits_per_second),
        "" if math.isnan(row.entropy_per_second) else spell_rate(row.entropy_per_second),
        spell_rate(row.bits_per_second / 8),
        metric.spell(row.score),
        "" if undefined else metric.spell(row.reference_score),
        "" if undefined else f"{100 * row.difference:+.1f}{deviation}".replace("-", "−"),
    )


def compared_with(row: BitRate) -> str:
    """Say which model on frames a model on tokens is compared with, and whether it is the same; "" for one on frames."""
    if not row.vocabulary:
        return ""
    if not row.reference:
        return "no same model on frames"
    return row.reference if row.same_model else f"{row.reference}, not the same model"


def write_bit_rates(path: Path, rows: Sequence[BitRate]) -> None:
    """Write one row a model as CSV, floats with 6 decimals, undefined values as `nan`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(BitRate))
        for row in rows:
            values = asdict(row).values()
            writer.writerow(f"{value:.6f}" if isinstance(value, float) else value for value in values)


def read_bit_rates(path: Path) -> list[BitRate]:
    """Read `bit_rates.csv` again. Raises SonolexError where there is none, and ArtifactError for other columns."""
    if not path.exists():
        raise SonolexError(f"{path}: expected the table of bit rates, found none; `dvc repro report` writes it")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, found = list(reader), reader.fieldnames
    expected = [field.name for field in fields(BitRate)]
    if found != expected:
        raise ArtifactError(path, "columns", expected=", ".join(expected), found=found, stage="report")
    parse = TypeAdapter(BitRate)
    return [parse.validate_python(row) for row in rows]
