"""Opened model: predictions, tokens and embeddings of files and of arrays.

Conventions: a sound is a path, or an array (sample,) or (channel, sample) with its `rate` in Hz, float in [-1, 1] or
integer. Channels are averaged, and any rate is resampled. Times are seconds from the start of the sound.
"""

from pathlib import Path
from typing import Self, TypeAlias

import numpy as np

from pipeline.errors import SonolexError
from pipeline.inference.classifier import Classifier
from pipeline.inference.opening import open_classifier
from pipeline.inference.prediction import Prediction
from pipeline.inference.sounds import ARRAY, read_array, read_file
from pipeline.spectrogram.decoding import BadClip

Sound: TypeAlias = str | Path | np.ndarray

MAX_SECONDS = 600.0  # of a sound that is read as a whole


class Model:
    """A trained model, or the mean of several. Several threads may use it at once."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @classmethod
    def open(cls, path: Path, classes: Path | None = None) -> Self:
        """Open a bundle or a published checkpoint; `classes` lists those of a checkpoint whose files do not name them."""
        return cls(open_classifier(path, classes))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of logits and scores."""
        return list(self._classifier.classes)

    @property
    def sample_rate(self) -> int:
        """Samples per second, Hz, that sounds are resampled to."""
        return self._classifier.sample_rate

    def predict(self, sound: Sound, rate: int | None = None) -> Prediction:
        """Return the scores of a whole sound. Raises SonolexError for a sound that cannot be used."""
        waveform = self._waveform(sound, rate)
        where = ARRAY if isinstance(sound, np.ndarray) else str(sound)
        logits = self._classifier.logits([self._frames(waveform, where)])
        return Prediction(
            source=where,
            start=0.0,
            end=len(waveform) / self.sample_rate,
            classes=self._classifier.classes,
            label_kind=self._classifier.label_kind,
            thresholds=self._classifier.thresholds,
            logits=logits[0],
            scores=self._classifier.scores(logits)[0],
        )

    def tokens(self, sound: Sound, rate: int | None = None) -> np.ndarray:
        """Return the tokens (codebook, token) uint16 of a sound, by the vocabulary of the first model that reads tokens.

        Raises SonolexError for a sound that cannot be used, and where no model reads tokens.
        """
        digests = list(self._classifier.vocabularies)
        if not digests:
            raise SonolexError("tokens: expected a model that reads tokens, found models that read frames alone")
        where = ARRAY if isinstance(sound, np.ndarray) else str(sound)
        frames = self._frames(self._waveform(sound, rate), where)
        return self._classifier.tokens([frames], digests[0])[0]

    def _waveform(self, sound: Sound, rate: int | None) -> np.ndarray:
        sizes = {"sample_rate": self.sample_rate, "min_samples": self._classifier.front_end.min_samples}
        try:
            if isinstance(sound, np.ndarray):
                return read_array(sound, rate, **sizes)
            return read_file(Path(sound), **sizes, max_seconds=MAX_SECONDS)
        except BadClip as error:
            raise SonolexError(str(error)) from None

    def _frames(self, waveform: np.ndarray, where: str) -> np.ndarray:
        try:
            return self._classifier.frames(waveform, where)
        except BadClip as error:
            raise SonolexError(str(error)) from None
