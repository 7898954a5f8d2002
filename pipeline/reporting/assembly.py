"""Gather what the page shows from the artifacts of all stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.tokens import TOKENS, open_tokens
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.reporting.gallery import (
    GallerySources,
    choose_attentive,
    choose_examples,
    choose_mistakes,
    clip_cards,
    score_experiment,
)
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.page import PageContent
from pipeline.reporting.plots import class_rows, confusion_counts, training_curves
from pipeline.reporting.summary import ReportParams
from pipeline.reporting.words import count_words, word_statistics


@dataclass(frozen=True)
class DataPaths:
    """Where the artifacts lie that the page shows, besides predictions."""

    clips: Path
    spectrogram: Path
    vocabulary: Path  # folder, <name>/<fold>
    tokens: Path  # folder, <name>/<fold>
    models: Path  # folder of the trained models
    logs: Path  # folder of the training logs
    audio: Path  # corpus root; may be missing

    @classmethod
    def below(cls, data: Path, *, models: Path, logs: Path, audio: Path) -> Self:
        """Return the paths that dvc.yaml gives the artifacts, below the data folder."""
        return cls(
            data / "clips.parquet", data / "spectrogram", data / "vocabulary", data / "tokens", models, logs, audio
        )


def gather_page(params: ReportParams, experiment: Experiment, data: DataPaths) -> PageContent:
    """Open everything that the page shows. Raises ArtifactError that names what is missing or does not fit."""
    clips, spectrogram = open_clips(data.clips), open_spectrogram(data.spectrogram)
    names = dict.fromkeys(experiment.params.reads.values())
    learnt = [(name, fold) for name in names for fold in experiment.params.folds]
    vocabularies = {(name, fold): open_vocabulary(data.vocabulary / name / f"{fold}.zarr") for name, fold in learnt}
    word_counts = {
        (name, fold): _count(data.tokens / name / f"{fold}.parquet", vocabularies[name, fold]) for name, fold in learnt
    }
    scores = score_experiment(experiment)
    examples = choose_examples(scores, params.examples)
    mistakes = choose_mistakes(scores, params.headline, params.worst)
    shown = {*examples, *mistakes}
    sources = GallerySources(
        clips={row["clip_id"]: row for row in clips.columns.to_pylist() if row["clip_id"] in shown},
        classes=clips.facts["classes"],
        spectrogram=spectrogram,
        vocabularies={
            fold: vocabulary for (name, fold), vocabulary in vocabularies.items() if name == next(iter(names))
        },
        tokens_path=data.tokens / next(iter(names), ""),
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
            key: word_statistics(counts, frame_rate=vocabularies[key].frame_rate) for key, counts in word_counts.items()
        },
        curves={model: training_curves(data.logs, experiment, model) for model in experiment.params.models},
        class_rows={model: class_rows(experiment, model) for model in experiment.models},
        confusions={model: confusion_counts(experiment, model) for model in experiment.models} if one else {},
        attentive=sources.attentive[0] if sources.attentive else "",
        examples=clip_cards(examples, scores, sources),
        mistakes=clip_cards(mistakes, scores, sources),
    )


def _count(path: Path, vocabulary: Vocabulary) -> np.ndarray:
    """Count a fold's words over all clips, and check that they are this vocabulary's."""
    tokens = open_tokens(path)
    if tokens.facts["vocabulary"] != vocabulary.digest():
        expected = f"{vocabulary.digest()}, as {vocabulary.path}"
        raise TOKENS.error(path, "fact vocabulary", expected=expected, found=tokens.facts["vocabulary"])
    return count_words(tokens)
