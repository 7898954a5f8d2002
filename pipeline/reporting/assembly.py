"""Gather what the page shows from the artifacts of all stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.tokens import TOKENS, open_tokens, token_arrays
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
from pipeline.reporting.page import PageContent
from pipeline.reporting.plots import class_rows, confusion_counts, training_curves
from pipeline.reporting.summary import ReportParams
from pipeline.reporting.words import count_words, length_shares, word_statistics


@dataclass(frozen=True)
class DataPaths:
    """Where the artifacts lie that the page shows, besides predictions."""

    clips: Path
    spectrogram: Path
    splits: Path  # folder, one table a fold
    vocabulary: Path  # folder, one store a fold
    tokens: Path  # folder, one table a fold
    models: Path  # folder of the trained models
    logs: Path  # folder of the training logs
    audio: Path  # corpus root; may be missing

    @classmethod
    def below(cls, data: Path, *, models: Path, logs: Path, audio: Path) -> Self:
        """Return the paths that dvc.yaml gives the artifacts, below the data folder."""
        return cls(
            clips=data / "clips.parquet",
            spectrogram=data / "spectrogram",
            splits=data / "splits",
            vocabulary=data / "vocabulary",
            tokens=data / "tokens",
            models=models,
            logs=logs,
            audio=audio,
        )


def gather_page(params: ReportParams, experiment: Experiment, data: DataPaths) -> PageContent:
    """Open everything that the page shows. Raises ArtifactError that names what is missing or does not fit."""
    clips, spectrogram = open_clips(data.clips), open_spectrogram(data.spectrogram)
    folds = experiment.params.folds if experiment.params.token_models else []
    vocabularies = {fold: open_vocabulary(data.vocabulary / f"{fold}.zarr") for fold in folds}
    word_counts: dict[str, np.ndarray] = {}
    merged_lengths: dict[str, np.ndarray] = {}
    language: list[LanguageRow] = []
    seconds = _durations(spectrogram)
    for fold in folds:  # one fold's words at a time
        tokens = _open_words(data.tokens / f"{fold}.parquet", vocabularies[fold])
        sentences, test = token_arrays(tokens), experiment.scored(experiment.params.token_models[0], fold)
        word_counts[fold] = count_words(tokens)
        if vocabularies[fold].merged:
            merged_lengths[fold] = length_shares(vocabularies[fold], [sentences[clip] for clip in test.clip_ids])
        language += measure_language(
            sentences,
            size=vocabularies[fold].size,
            training_clips=clips_of(open_split(data.splits / f"{fold}.parquet"), "train"),
            test=test,
            seconds=seconds,
        )
    scores = score_experiment(experiment)
    examples = choose_examples(scores, params.examples)
    mistakes = choose_mistakes(scores, params.headline, params.worst)
    shown = {*examples, *mistakes}
    sources = GallerySources(
        clips={row["clip_id"]: row for row in clips.columns.to_pylist() if row["clip_id"] in shown},
        classes=clips.facts["classes"],
        spectrogram=spectrogram,
        vocabularies=vocabularies,
        tokens_path=data.tokens,
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
        word_counts=word_counts,
        word_statistics={
            fold: word_statistics(counts, frame_rate=vocabularies[fold].frame_rate)
            for fold, counts in word_counts.items()
        },
        merged_lengths=merged_lengths,
        language=language,
        curves={model: training_curves(data.logs, experiment, model) for model in experiment.params.models},
        class_rows={model: class_rows(experiment, model) for model in experiment.models},
        confusions={model: confusion_counts(experiment, model) for model in experiment.models} if one else {},
        attentive=sources.attentive[0] if sources.attentive else "",
        examples=clip_cards(examples, scores, sources),
        mistakes=clip_cards(mistakes, scores, sources),
    )


def _durations(spectrogram: Spectrogram) -> dict[str, float]:
    """Return clip id -> seconds."""
    index = spectrogram.index
    seconds = index["num_frames"].to_numpy() / spectrogram.frame_rate
    return dict(zip(index.list("clip_id"), seconds.tolist(), strict=True))


def _open_words(path: Path, vocabulary: Vocabulary) -> Table:
    """Open a fold's words of all clips, and check that they are this vocabulary's."""
    tokens = open_tokens(path)
    if tokens.facts["vocabulary"] != vocabulary.digest():
        expected = f"{vocabulary.digest()}, as {vocabulary.path}"
        raise TOKENS.error(path, "fact vocabulary", expected=expected, found=tokens.facts["vocabulary"])
    return tokens
