"""Embeddings: vectors of sounds, of a layer of a network or of texture statistics, which need no training.

Conventions: waveforms (clip, sample) float32, of one length, at the embedder's rate; embeddings (clip, dim) float32. Along
time a clip has time steps, whose `seconds` (step,) are the middle of each, from the clip's start; values (clip, step, dim).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.spectrogram import Mix
from pipeline.artifacts.tables import metadata_digest
from pipeline.errors import SonolexError
from pipeline.evaluation.prediction import describe_model
from pipeline.inference.classifier import Classifier
from pipeline.inference.opening import open_classifier
from pipeline.inference.sounds import Reading
from pipeline.models.baselines.texture_statistics import extract_features
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.spectrogram.sources import BadClip

TEXTURES = "textures"  # the layer that every model has
DEFAULT_LAYER = "encoder"

# The front end of the AST's authors and of all recipes; the statistics are of its frames, whatever a model reads.
_FRONT_END = KaldiParams(
    kind="kaldi",
    sample_rate=16000,
    win_length=400,
    hop_length=160,
    n_fft=512,
    n_mels=128,
    f_min=20.0,
    f_max=8000.0,
    pre_emphasis=0.97,
)
_FLOOR = -8.0  # ln(power), below which is silence: near the 0.4-quantile of ESC-10, as the classifier takes it
_WINDOW = 1.0  # seconds that a time step of the texture statistics is computed from
_HOP = 0.05  # seconds between these


class TimeSteps(NamedTuple):
    """Embeddings along the time of clips of one length."""

    seconds: np.ndarray  # (step,) float64, the middle of each, from the clip's start
    values: np.ndarray  # (clip, step, dim) float32


class Embedder(ABC):
    """Maps sounds to vectors. Several threads may use it at once."""

    layer: str
    dim: int
    sample_rate: int  # Hz
    min_samples: int  # of the shortest waveform
    mix: Mix = "mean"  # of channels
    allow_silence: bool = False
    hop: float | None  # seconds from one time step to the next; None for a layer of one vector a clip
    digest: str  # of all that the vectors follow from, the layer left out

    @property
    def reading(self) -> Reading:
        """How sounds are read."""
        return {
            "sample_rate": self.sample_rate,
            "min_samples": self.min_samples,
            "mix": self.mix,
            "allow_silence": self.allow_silence,
        }

    @abstractmethod
    def clips(self, waveforms: np.ndarray, where: str) -> np.ndarray:
        """Return the embeddings of clips. Raises BadClip, which names `where`, for samples that are no sound."""

    @abstractmethod
    def steps(self, waveforms: np.ndarray, where: str) -> TimeSteps:
        """Return the embeddings of clips along time. Raises SonolexError for a layer without time, BadClip as `clips`."""


class TextureEmbedder(Embedder):
    """Texture statistics of log-mel frames (`pipeline/models/baselines/texture_statistics.py`)."""

    layer = TEXTURES
    sample_rate = _FRONT_END.sample_rate
    hop = _HOP

    def __init__(self) -> None:
        self._front_end = KaldiFrontEnd(_FRONT_END)
        self._frame_rate = float(self._front_end.metadata["frame_rate"])
        self.min_samples = self._front_end.min_samples
        self.dim = len(self.statistics(np.full((2, _FRONT_END.n_mels), _FLOOR, np.float32)))
        self.digest = metadata_digest({"params": _FRONT_END.model_dump(), "floor": _FLOOR, "window": _WINDOW})

    def clips(self, waveforms: np.ndarray, where: str) -> np.ndarray:
        return np.stack([self.statistics(frames) for frames in self._frames(waveforms, where)])

    def steps(self, waveforms: np.ndarray, where: str) -> TimeSteps:
        """Return the statistics of a second of sound around each time step; at a clip's ends of what there is of it."""
        frames = self._frames(waveforms, where)
        length, half = frames.shape[1], round(_WINDOW * self._frame_rate / 2)
        middles = np.arange(0.5, length, _HOP * self._frame_rate)
        spans = [slice(max(0, int(middle) - half), int(middle) + half) for middle in middles]
        values = [[self.statistics(clip[span]) for span in spans] for clip in frames]
        return TimeSteps(middles / self._frame_rate, np.array(values, dtype=np.float32))

    def statistics(self, frames: np.ndarray) -> np.ndarray:
        """Return the statistics (dim,) of a clip's log-mel frames (frame, mel) in ln(power)."""
        return extract_features(frames, floor=_FLOOR, frame_rate=self._frame_rate)

    def _frames(self, waveforms: np.ndarray, where: str) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            frames = self._front_end.log_mel(waveforms)
        if not np.isfinite(frames).all():
            found = f"samples as large as {np.abs(waveforms).max():.3g}"
            raise BadClip("not_finite", f"{where}: expected samples about [-1, 1], found {found}")
        return frames


def open_embedder(classifier: Classifier, layer: str) -> Embedder:
    """Return the embedder of a layer of a classifier's first network, or of texture statistics.

    Raises SonolexError for a layer that there is not.
    """
    if layer == TEXTURES:
        return TextureEmbedder()
    member = classifier.first_network
    if member is None:
        found = ", ".join(sorted({describe_model(member.model) for member in classifier.members}))
        raise SonolexError(
            f"layer {layer}: expected a neural network, which alone has layers, found {found}; the layer {TEXTURES} needs "
            "no network"
        )
    from pipeline.inference.network_embedding import NetworkEmbedder  # imports torch

    return NetworkEmbedder(classifier, member, layer)


def open_embedder_of(model: Path | None, layer: str | None, classes: Path | None = None) -> Embedder:
    """Return the embedder of a layer of a bundle or a published checkpoint; without a model that of texture statistics.

    `classes` lists the classes of a checkpoint whose files do not name them.
    """
    if model is not None:
        return open_embedder(open_classifier(model, classes), layer or DEFAULT_LAYER)
    if layer not in (None, TEXTURES):
        raise SonolexError(f"layer: expected {TEXTURES} where no model is named, found {layer}; name a model")
    return TextureEmbedder()


def layer_sizes(classifier: Classifier) -> Mapping[str, int]:
    """Return the layers that can be embedded and their sizes; those of the first network, and texture statistics."""
    sizes = {TEXTURES: TextureEmbedder().dim}
    if member := classifier.first_network:
        from pipeline.inference.network_embedding import layers_of

        sizes |= layers_of(member)
    return sizes
