"""Classification of waveforms by one model or several: frames, tokens and logits as in training.

Conventions: waveforms (sample,) float32 at the front end's rate (`pipeline/inference/sounds.py`); frames (frame, mel) as
stored, in the type and steps of the training frames; logits (clip, class) float32. Several models predict the mean of their
probabilities, as all ensembles here do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.artifacts.clips import LabelKind, Link, link_of
from pipeline.artifacts.model import TrainedModel
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.evaluation.averaging import average_logits
from pipeline.evaluation.metric_functions import Floats, to_scores
from pipeline.evaluation.prediction import Predictor, open_predictor, params_of
from pipeline.evaluation.tokenizing import tokenize_clips
from pipeline.inference.clip_inputs import ClipInputs
from pipeline.inference.sounds import Reading, reading_of
from pipeline.spectrogram.computing import stored_frames
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.registry import recorded_front_end
from pipeline.spectrogram.storing import restore
from pipeline.training.trainers import way_of

DEFAULT_WINDOW = 5.0  # seconds; of timelines


@dataclass(frozen=True)
class Member:
    """One trained model, with the vocabulary of its tokens where it reads tokens."""

    model: TrainedModel
    vocabulary: Vocabulary | None

    @property
    def source(self) -> str:
        """Digest of the vocabulary; empty for a model that reads frames."""
        return self.model.metadata["source"]

    @cached_property
    def predictor(self) -> Predictor:
        """The model, ready to predict."""
        return open_predictor(self.model)

    def inputs(self, clips: Sequence[np.ndarray]) -> ClipInputs:
        """Return frames as stored, or tokens, of clips as the model reads them."""
        return ClipInputs(self.model, self.vocabulary, clips)

    def logits(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits (clip, class) float32 of frames as stored, or of tokens."""
        inputs = self.inputs(clips)
        return self.predictor.predict(inputs, inputs.clip_ids)


@dataclass(frozen=True)
class Classifier:
    """Models of one front end and one list of classes, whose mean predicts. Several threads may use it at once."""

    members: tuple[Member, ...]
    thresholds: np.ndarray = field(repr=False)  # (class,) of probabilities, with label kind "many"

    @property
    def classes(self) -> list[str]:
        return self.members[0].model.metadata["classes"]

    @property
    def label_kind(self) -> LabelKind:
        return self.members[0].model.metadata["label_kind"]

    @property
    def link(self) -> Link:
        """Function from logits to probabilities, the same for all models."""
        return link_of(self.members[0].model.metadata)

    @property
    def metadata(self) -> SpectrogramMetadata:
        """Metadata of the frames: front end, and how values are stored."""
        return self.members[0].model.metadata["front_end"]

    @property
    def sample_rate(self) -> int:
        """Samples per second, Hz, of waveforms."""
        return int(self.metadata["sample_rate"])

    @property
    def reading(self) -> Reading:
        """How sounds are read, as the training clips were."""
        return reading_of(self.metadata, self.front_end.min_samples)

    @cached_property
    def front_end(self) -> FrontEnd:
        return recorded_front_end(self.metadata)

    @cached_property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Vocabularies of the models by digest, in the order of the models."""
        return {member.source: member.vocabulary for member in self.members if member.vocabulary}

    @property
    def first_network(self) -> Member | None:
        """The first model that is a neural network; None where all are classical."""
        return next((member for member in self.members if way_of(params_of(member.model).kind) == "network"), None)

    @property
    def windows(self) -> tuple[float, float] | None:
        """Length and hop, in seconds, of the windows of the first model that has any; None where none has."""
        found = (params_of(member.model).windows for member in self.members)
        return next((windows for windows in found if windows is not None), None)

    def timeline_windows(self, window: float | None, hop: float | None) -> tuple[float, float | None]:
        """Return window and hop of a timeline, in seconds; by default those of the models, or of DEFAULT_WINDOW."""
        if window is not None or self.windows is None:
            return DEFAULT_WINDOW if window is None else window, hop
        length, own_hop = self.windows
        return length, own_hop if hop is None else hop

    def prepare(self) -> None:
        """Build all models, which otherwise happens when they are first used."""
        for member in self.members:
            _ = member.predictor

    def frames(self, waveform: np.ndarray, where: str) -> np.ndarray:
        """Return a waveform's frames (frame, mel) as stored. Raises BadClip that names `where` unless they are finite."""
        return stored_frames(waveform, self.front_end, self.metadata, where=where)[0]

    def tokens(self, frames: Sequence[np.ndarray], digest: str) -> list[np.ndarray]:
        """Return the tokens (codebook, token) uint16 of each clip's stored frames, by the vocabulary of this digest."""
        return tokenize_clips(self.vocabularies[digest], [restore(clip, self.metadata) for clip in frames])

    def logits(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits (clip, class) float32 of clips, given by their stored frames."""
        clips = {"": list(frames)} | {digest: self.tokens(frames, digest) for digest in self.vocabularies}
        return average_logits([member.logits(clips[member.source]) for member in self.members], self.link)

    def scores(self, logits: np.ndarray) -> Floats:
        """Return probabilities (clip, class) of logits."""
        return to_scores(logits, self.link)
