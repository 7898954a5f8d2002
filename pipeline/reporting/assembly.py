"""Gather what the page shows from the artifacts of all stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.attention import ATTENTION, GRAD_CAM, attention_maps, open_attention
from pipeline.artifacts.clips import ClipRecord, ClipTable, open_clips
from pipeline.artifacts.duplicates import open_duplicates
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.missing import open_missing
from pipeline.artifacts.ngram_perplexity import read_ngram_perplexity
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.training_labels import open_training_labels
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.corpora.base import corpus_name
from pipeline.evaluation.choosing import choose_shown, score_experiment
from pipeline.reporting.bit_rates import measure_bit_rates
from pipeline.reporting.gallery import GallerySources, clip_cards
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.near_duplicates import describe_duplicates
from pipeline.reporting.page import PageContent, VocabularyKey
from pipeline.reporting.plots import class_rows, confusion_counts, training_curves
from pipeline.reporting.report_settings import ReportParams
from pipeline.reporting.several_labels import label_results, reliability_of
from pipeline.reporting.token_use import (
    TokenUse,
    count_by_class,
    count_tokens,
    length_shares,
    measure_rate,
    require_tokens_of,
    spread_tokens,
    stabilities,
    token_statistics,
)

_NAMED_GROUPS = 3  # that a fold holds out


def gather_page(params: ReportParams, experiment: Experiment, layout: Layout, *, audio: Path) -> PageContent:
    """Open everything that the page shows; `audio` is the corpus root and may be missing.

    Raises ArtifactError that names what is missing or does not fit.
    """
    clips, spectrogram = open_clips(layout.clips), open_spectrogram(layout.spectrogram)
    names = experiment.params.vocabularies
    vocabularies: dict[VocabularyKey, Vocabulary] = {}
    tokens: dict[str, TokenUse] = {}
    for name in names:
        own = {fold: open_vocabulary(layout.vocabulary(name, fold)) for fold in experiment.params.folds}
        vocabularies |= {(name, fold): vocabulary for fold, vocabulary in own.items()}
        tokens[name] = describe_tokens(name, own, clips, spectrogram, layout)
    splits = {fold: open_split(layout.split(fold)) for fold in experiment.params.folds}
    scores = score_experiment(experiment)
    shown = choose_shown(scores, params.headline, examples=params.examples, mistakes=params.worst)
    explained = [_explanation_maps(layout, entry, experiment, shown.all) for entry in params.attention]
    sources = GallerySources(
        clips=_records(clips, shown.all),
        classes=clips.metadata["classes"],
        spectrogram=spectrogram,
        vocabularies={fold: vocabulary for (name, fold), vocabulary in vocabularies.items() if name == names[0]},
        tokens={fold: layout.tokens(names[0], fold) for fold in experiment.params.folds} if names else {},
        explanations={title: maps for title, _, maps in explained},
        audio_path=audio,
    )
    one = clips.metadata["label_kind"] == "one"
    return PageContent(
        experiment=experiment,
        folds={fold: held_out(clips, split) for fold, split in splits.items()},
        fold_rules=list(dict.fromkeys(split.metadata["rule"] for split in splits.values())),
        clips=clips,
        missing=open_missing(layout.missing),
        duplicates=describe_duplicates(clips, open_duplicates(layout.duplicates), splits),
        training_labels=open_training_labels(layout.training_labels),
        splits=splits,
        spectrogram=spectrogram,
        vocabularies=vocabularies,
        tokens=tokens,
        bit_rates=measure_bit_rates(
            experiment,
            params.references,
            {name: list(use.rates.values()) for name, use in tokens.items()},
            spectrogram.metadata,
            corpus_name(clips.metadata["corpus"]),
        ),
        curves={model: training_curves(layout, experiment, model) for model in experiment.params.models},
        class_rows={model: class_rows(experiment, model) for model in experiment.models},
        confusions={model: confusion_counts(experiment, model) for model in experiment.models} if one else {},
        reliability={model: reliability_of(scores, model) for model in params.headline},
        label_results={} if one else {model: label_results(scores, model) for model in params.headline},
        explained_by=tuple(method for _, method, _ in explained),
        examples=clip_cards(shown.examples, scores, sources),
        mistakes=clip_cards(shown.mistakes, scores, sources),
    )


def _records(clips: ClipTable, clip_ids: Sequence[str]) -> dict[str, ClipRecord]:
    """Return the rows of some clips by id; of a large corpus no others become Python objects."""
    rows = clips.columns.filter(pc.is_in(clips["clip_id"], pa.array(clip_ids, pa.string())))
    return {row["clip_id"]: row for row in rows.to_pylist()}


def held_out(clips: ClipTable, split: Table) -> str:
    """Name the groups of a fold's test clips, such as recordings or speakers, or count them where they are many.

    Returns "" where every test clip is a group of its own.
    """
    test = clips["group"].filter(pc.is_in(clips["clip_id"], pa.array(clips_of(split, "test"), pa.string())))
    groups = sorted(set(test.to_pylist()))
    if len(groups) == len(test):
        return ""
    return ", ".join(groups) if len(groups) <= _NAMED_GROUPS else f"{len(groups)} groups of clips"


def describe_tokens(
    name: str, vocabularies: Mapping[str, Vocabulary], clips: ClipTable, spectrogram: Spectrogram, layout: Layout
) -> TokenUse:
    """Read the tokens that a vocabulary `name` has in every fold, one fold after the other, and say what there is to say."""
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    counts, joint, spread, merged_lengths, rates = {}, {}, {}, {}, {}
    for fold, vocabulary in vocabularies.items():
        tokens, split = open_tokens(layout.tokens(name, fold)), open_split(layout.split(fold))
        require_tokens_of(tokens, vocabulary)
        sequences = token_arrays(tokens)
        counts[fold], spread[fold] = count_tokens(tokens), spread_tokens(sequences, vocabulary)
        own = {clip: labels[clip] for clip in clips_of(split, "train") if clip in labels}
        joint[fold] = count_by_class(tokens, own, len(clips.metadata["classes"]))
        tested = clips_of(split, "test")
        if vocabulary.merged:
            merged_lengths[fold] = length_shares(vocabulary, [sequences[clip] for clip in tested if clip in sequences])
        rows = tokens.columns.filter(pc.is_in(tokens["clip_id"], pa.array(tested, pa.string())))
        test_counts = count_tokens(Table(tokens.path, rows, tokens.metadata))
        rates[fold] = measure_rate(vocabulary, test_counts, _seconds(spectrogram, rows["clip_id"]))
    stability = stabilities(spread)
    statistics = {
        fold: token_statistics(
            counts[fold],
            frame_rate=vocabulary.frame_rate,
            joint=joint[fold],
            distortion=vocabulary.distortion,
            stability=stability[fold],
        )
        for fold, vocabulary in vocabularies.items()
    }
    perplexity = {fold: read_ngram_perplexity(layout.ngram_perplexity(name, fold)) for fold in vocabularies}
    return TokenUse(counts, statistics, merged_lengths, rates, perplexity)


def _seconds(spectrogram: Spectrogram, clip_ids: pa.ChunkedArray) -> float:
    """Return how long clips are together, by their frames."""
    rows = pc.is_in(spectrogram.index["clip_id"], clip_ids.combine_chunks())
    frames = pc.sum(spectrogram.index.columns.filter(rows)["num_frames"]).as_py()
    return (frames or 0) / spectrogram.frame_rate


def _explanation_maps(
    layout: Layout, entry: str, experiment: Experiment, shown: Sequence[str]
) -> tuple[str, str, dict[str, np.ndarray]]:
    """Return the title, method and maps by clip id of a model's explanation.

    Checks that all clips shown have one, from the weights that predicted.
    """
    table = open_attention(layout.attention(entry))
    for fold, digest in table.metadata["weights"].items():
        predictions = experiment.tables.get(RunId.of(entry, fold, table.metadata["seed"]))
        expected = predictions.metadata["weights"] if predictions else "none: the experiment has no such fold and seed"
        if expected != digest:
            raise ATTENTION.error(table.path, f"weights of fold {fold}", expected=expected, found=digest)
    maps = attention_maps(table)
    if missing := [clip for clip in shown if clip not in maps]:
        expected = f"the {len(shown)} clips that the report shows"
        raise ATTENTION.error(
            table.path, "clip_id", expected=expected, found=f"{len(missing)} missing ({missing[0]}, ...)"
        )
    method = table.metadata["layer"]
    return f"{'Grad-CAM' if method == GRAD_CAM else 'Attention'} of {entry}", method, maps
