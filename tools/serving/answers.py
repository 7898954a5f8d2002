"""Answers of the server as JSON; OpenAPI describes them by these classes.

Conventions: times are seconds from the start of the sound; scores are probabilities.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from pipeline.artifacts.clips import LabelKind
from pipeline.inference.prediction import Prediction
from pipeline.reporting.pictures import mel_picture, token_colours
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.storing import restore
from tools.serving.limits import Limits
from tools.serving.models import ServedModel

_RANGE = 8.0  # standard deviations below the loudest value that a spectrogram shows, at most


class ScoredClass(BaseModel):
    """A class and its probability."""

    name: str
    score: float


class PredictionAnswer(BaseModel):
    """What a model says of one sound."""

    source: str  # the client's name of the file
    start: float
    end: float
    labels: list[str]  # classes that are decided for
    scores: list[ScoredClass]  # highest first


class WindowsAnswer(BaseModel):
    """Scores along the time of a sound."""

    start: list[float]  # of each window
    end: list[float]
    classes: list[str]  # those with the highest scores in any window, highest first
    scores: list[list[float]]  # of each window, in the order of `classes`


class TokensAnswer(BaseModel):
    """Token sequences of a sound."""

    rate: float  # tokens per second in each codebook
    tokens: list[list[int]]  # of each codebook


class EmbeddingAnswer(BaseModel):
    """Vector of a sound."""

    source: str  # the client's name of the file
    layer: str
    embedding: list[float]


class TimelineAnswer(PredictionAnswer):
    """What a model says along the time of a sound."""

    windows: WindowsAnswer
    tokens: TokensAnswer | None  # none of models that read frames alone
    spectrogram: str  # PNG as a `data:` address, a column a frame; empty unless asked for
    frame_rate: float  # columns per second of the spectrogram


class VocabularyAnswer(BaseModel):
    """Vocabulary of a model's tokens."""

    num_codebooks: int
    num_tokens: int  # in each codebook
    colours: list[list[str]]  # of each codebook's tokens, #rrggbb: hue by frequency, lightness by level


class ModelAnswer(BaseModel):
    """A model that the server offers."""

    name: str
    classes: list[str]
    label_kind: LabelKind
    sample_rate: int  # Hz, that sounds are resampled to
    max_seconds: float  # of a sound
    max_bytes: int  # of an upload
    max_windows: int  # of a timeline
    vocabulary: VocabularyAnswer | None


class HealthAnswer(BaseModel):
    """State of the server."""

    status: str
    models: list[str]
    requests: int  # at work


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    reason: str  # one word, for programs
    message: str  # where, what was expected, what was found, and what to do


def prediction_answer(prediction: Prediction, top: int) -> PredictionAnswer:
    """Return a prediction with its `top` classes."""
    return PredictionAnswer(
        source=prediction.source,
        start=prediction.start,
        end=prediction.end,
        labels=prediction.labels,
        scores=[ScoredClass(name=name, score=score) for name, score in prediction.top(top)],
    )


def windows_answer(predictions: Sequence[Prediction], top: int) -> WindowsAnswer:
    """Return the scores of windows, of the `top` classes that have the highest in any of them."""
    scores = np.stack([prediction.scores for prediction in predictions])
    classes = np.argsort(-scores.max(axis=0), kind="stable")[:top]
    return WindowsAnswer(
        start=[prediction.start for prediction in predictions],
        end=[prediction.end for prediction in predictions],
        classes=[predictions[0].classes[row] for row in classes.tolist()],
        scores=np.round(scores[:, classes], 6).tolist(),
    )


def tokens_answer(model: ServedModel, frames: np.ndarray) -> TokensAnswer | None:
    """Return the tokens of a sound's stored frames, merged ones repeated for every base token."""
    if model.vocabulary is None:
        return None
    (tokens,) = model.classifier.tokens([frames], next(iter(model.classifier.vocabularies)))
    in_time = model.vocabulary.in_time(tokens)
    seconds = len(frames) / model.classifier.metadata["frame_rate"]
    each = model.vocabulary.frames_per_token
    padded = each * -(-len(frames) // each) / len(frames)
    return TokensAnswer(rate=in_time.shape[1] / (seconds * padded), tokens=in_time.tolist())


def spectrogram_answer(model: ServedModel, frames: np.ndarray) -> str:
    """Return a sound's stored frames as a picture."""
    metadata = model.classifier.metadata
    values = log_mel_part(restore(frames, metadata), metadata)
    high = float(values.max())
    return mel_picture(values, max(float(values.min()), high - _RANGE * float(values.std())), high)


def model_answer(model: ServedModel, limits: Limits) -> ModelAnswer:
    """Return the description of a model."""
    classifier = model.classifier
    return ModelAnswer(
        name=model.name,
        classes=classifier.classes,
        label_kind=classifier.label_kind,
        sample_rate=classifier.sample_rate,
        max_seconds=limits.max_seconds,
        max_bytes=limits.max_bytes,
        max_windows=limits.windows,
        vocabulary=_vocabulary_answer(model),
    )


def _vocabulary_answer(model: ServedModel) -> VocabularyAnswer | None:
    vocabulary = model.vocabulary
    if vocabulary is None:
        return None
    colours = np.round(255 * token_colours(vocabulary)).astype(int).tolist()
    return VocabularyAnswer(
        num_codebooks=vocabulary.num_codebooks,
        num_tokens=vocabulary.num_tokens,
        colours=[[f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in book] for book in colours],
    )
