"""Gather what the page shows from the artifacts of all stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.reporting.gallery import (
    GallerySources,
    choose_attentive,
    choose_examples,
    choose_mistakes,
    clip_cards,
    score_experiment,
)
from pipeline.reporting.language import LanguageRow, measure_language
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.page import PageContent, VocabularyKey
from pipeline.reporting.plots import class_rows, confusion_counts, training_curves
from pipeline.reporting.summary import ReportParams
from pipeline.reporting.words import (
    Words,
    count_by_class,
    count_words,
    length_shares,
    require_words_of,
    spread_words,
    stabilities,
    word_statistics,
)


@dataclass(frozen=True)
class DataPaths:
    """Where the artifacts lie that the page shows, besides predictions."""

    clips: Path
    spectrogram: Path
    vocabulary: Path  # folder, <name>/<fold>
    tokens: Path  # folder, <name>/<fold>
    splits: Path  # folder, one table a fold
    models: Path  # folder of the trained models
    logs: Path  # folder of the training logs
    audio: Path  # corpus root; may be missing

    @classmethod
    def below(cls, data: Path, *, models: Path, logs: Path, audio: Path) -> Self:
        """Return the paths that dvc.yaml gives the artifacts, below the data folder."""
        spectrogram, vocabulary, tokens, splits = (
            data / name for name in ("spectrogram", "vocabulary", "tokens", "splits")
        )
        return cls(data / "clips.parquet", spectrogram, vocabulary, tokens, splits, models, logs, audio)


def gather_page(params: ReportParams, experiment: Experiment, data: DataPaths) -> PageContent:
    """Open everything that the page shows. Raises ArtifactError that names what is missing or does not fit."""
    clips, spectrogram = open_clips(data.clips), open_spectrogram(data.spectrogram)
    names = list(dict.fromkeys(experiment.params.reads.values()))
    vocabularies: dict[VocabularyKey, Vocabulary] = {}
    words: dict[str, Words] = {}
    for name in names:
        own = {fold: open_vocabulary(data.vocabulary / name / f"{fold}.zarr") for fold in experiment.params.folds}
        vocabularies |= {(name, fold): vocabulary for fold, vocabulary in own.items()}
        words[name] = describe_words(name, own, experiment, clips, spectrogram, data)
    scores = score_experiment(experiment)
    examples = choose_examples(scores, params.examples)
    mistakes = choose_mistakes(scores, params.headline, params.worst)
    shown = {*examples, *mistakes}
    sources = GallerySources(
        clips={row["clip_id"]: row for row in clips.columns.to_pylist() if row["clip_id"] in shown},
        classes=clips.facts["classes"],
        spectrogram=spectrogram,
        vocabularies={fold: vocabulary for (name, fold), vocabulary in vocabularies.items() if name == names[0]},
        tokens_path=data.tokens / (names[0] if names else ""),
        models_path=data.models,
        attentive=choose_attentive(experiment),
        audio_path=data.audio,
    )
    one = clips.facts["label_kind"] == "one"
    return PageContent(
        experiment=experiment,
        clips=clips,
        spectrogram=spectrogram,
        vocabularies=vocabularies,
        words=words,
        curves={model: training_curves(data.logs, experiment, model) for model in experiment.params.models},
        class_rows={model: class_rows(experiment, model) for model in experiment.models},
        confusions={model: confusion_counts(experiment, model) for model in experiment.models} if one else {},
        attentive=sources.attentive[0] if sources.attentive else "",
        examples=clip_cards(examples, scores, sources),
        mistakes=clip_cards(mistakes, scores, sources),
    )


def describe_words(
    name: str,
    vocabularies: Mapping[str, Vocabulary],
    experiment: Experiment,
    clips: Table,
    spectrogram: Spectrogram,
    data: DataPaths,
) -> Words:
    """Read the words that a vocabulary `name` has in every fold, one fold after the other, and say what there is to say."""
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    seconds = _durations(spectrogram)
    reader = next(model for model, read in experiment.params.reads.items() if read == name)  # any: of its test clips
    counts, joint, spread, merged_lengths = {}, {}, {}, {}
    language: list[LanguageRow] = []
    for fold, vocabulary in vocabularies.items():
        tokens = _open_words(data.tokens / name / f"{fold}.parquet", vocabulary)
        training = clips_of(open_split(data.splits / f"{fold}.parquet"), "train")
        sentences, test = token_arrays(tokens), experiment.scored(reader, fold)
        counts[fold], spread[fold] = count_words(tokens), spread_words(sentences, vocabulary)
        own = {clip: labels[clip] for clip in training if clip in labels}
        joint[fold] = count_by_class(tokens, own, len(clips.facts["classes"]))
        if vocabulary.merged:
            merged_lengths[fold] = length_shares(vocabulary, [sentences[clip] for clip in test.clip_ids])
        language += measure_language(
            sentences, size=vocabulary.num_tokens, training_clips=training, test=test, seconds=seconds
        )
    stability = stabilities(spread)
    statistics = {
        fold: word_statistics(
            counts[fold],
            frame_rate=vocabulary.frame_rate,
            joint=joint[fold],
            distortion=float(vocabulary.facts["fit"]["distortion"]),
            stability=stability[fold],
        )
        for fold, vocabulary in vocabularies.items()
    }
    return Words(counts, statistics, merged_lengths, language)


def _durations(spectrogram: Spectrogram) -> dict[str, float]:
    """Return clip id -> seconds."""
    index = spectrogram.index
    seconds = index["num_frames"].to_numpy() / spectrogram.frame_rate
    return dict(zip(index.list("clip_id"), seconds.tolist(), strict=True))


def _open_words(path: Path, vocabulary: Vocabulary) -> Table:
    """Open a fold's tokens and check that they are this vocabulary's."""
    tokens = open_tokens(path)
    require_words_of(tokens, vocabulary)
    return tokens
