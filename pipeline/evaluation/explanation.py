"""Maps over the spectrogram that show what a network's decision follows from: attention, or Grad-CAM for convolutional ones.

Attention shows where information could come from; Grad-CAM what raises the score of one class. A map is (frame, mel); its
mean is 1 over the frames and bands that the network reads, the others are NaN. A Grad-CAM map is 0 where nothing in the clip
speaks for the class.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.evaluation.attention import AttentionReader
from pipeline.evaluation.grad_cam import ClipGradCam, GradCamReader
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.models.base import Explanation
from pipeline.models.registry import ENCODERS
from pipeline.training.inputs import Inputs


class Explained(Protocol):
    """One clip's explanation."""

    @property
    def logits(self) -> np.ndarray:
        """The model's own, (class,) float32."""

    def over_spectrogram(self) -> np.ndarray:
        """Return the map (frame, mel)."""


class Explainer(Protocol):
    """One trained model, ready to be explained."""

    method: ClassVar[str]  # `layer` of the artifact, see pipeline/artifacts/attention.py

    def __init__(self, model: TrainedModel, inputs: Inputs) -> None: ...

    def read(self, clip_id: str, target: int | None = None) -> Explained:
        """Explain a clip's score of a class, by default of the likeliest one; attention is the same for all classes."""


EXPLAINERS: Mapping[Explanation, type[Explainer]] = {"attention": AttentionReader, "grad_cam": GradCamReader}


def open_explainer(model: TrainedModel, inputs: Inputs) -> Explainer:
    """Prepare a trained model, and the frames that it reads. Raises SonolexError for a model that has no map."""
    kind = params_of(model).explanation
    if kind is None:
        encoders = ", ".join(name for name in ENCODERS if _is_explained(name))
        raise SonolexError(
            f"{model.path}: expected a network that reads frames by one of the encoders {encoders}, found "
            f"{describe_model(model)}; name such a model"
        )
    return EXPLAINERS[kind](model, inputs)


def class_number(name: str, model: TrainedModel) -> int | None:
    """Return the number of a class of a model; None for an empty name. Raises SonolexError."""
    classes = model.metadata["classes"]
    if name and name not in classes:
        close = difflib.get_close_matches(name, classes, n=3)
        raise SonolexError(
            f"{model.path}: expected one of its classes, found {name!r}; did you mean {', '.join(close)}?"
            if close
            else f"{model.path}: expected one of its classes ({', '.join(classes[:8])}, ...), found {name!r}; name one"
        )
    return classes.index(name) if name else None


def describe_map(explained: Explained, classes: Sequence[str]) -> str:
    """Return what a map is, for the legend of its colours."""
    if isinstance(explained, ClipGradCam):
        return f"Grad-CAM, {classes[explained.target]}\n(1 = mean)"
    return "attention, rollout\n(1 = even)"


def _is_explained(encoder: str) -> bool:
    return ENCODERS[encoder].has_attention or ENCODERS[encoder].has_feature_maps
