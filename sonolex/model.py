"""Opened model: predictions, tokens and embeddings of files and of arrays.

Conventions: a sound is a path, or an array (sample,) or (channel, sample) with its `rate` in Hz, float in [-1, 1] or
integer. Channels are averaged, and any rate is resampled. Times, windows and hops are seconds from the start of the sound;
a hop of None is half a window.
"""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias, overload

import numpy as np

from pipeline.errors import SonolexError
from pipeline.inference.classifier import Classifier
from pipeline.inference.embedding import DEFAULT_LAYER, Embedder, TextureEmbedder, layer_sizes, open_embedder
from pipeline.inference.opening import open_ensemble
from pipeline.inference.predicting import FilePrediction, describe, predict_files, predict_windows
from pipeline.inference.prediction import Failure, Prediction
from pipeline.inference.sounds import ARRAY, MAX_SECONDS, Reading, mix_array, read_array, read_file, require_rate
from pipeline.inference.windows import Pool, Windowing, array_windows
from pipeline.spectrogram.sources import BadClip

Sound: TypeAlias = str | Path | np.ndarray


class FrameEmbeddings(NamedTuple):
    """Embeddings along the time of a sound."""

    seconds: np.ndarray  # (step,) float64, the middle of each time step, from the start of the sound
    values: np.ndarray  # (step, dim) float32


class Model:
    """A trained model, or the mean of several. Several threads may use it at once."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._embedders: dict[str, Embedder] = {}  # by layer
        self._opening = threading.Lock()  # of embedders

    @classmethod
    def open(cls, *paths: Path, classes: Path | None = None) -> Self:
        """Open a bundle or a published checkpoint, or several checkpoints as an ensemble.

        `classes` lists the classes of checkpoints whose files do not name them.
        """
        return cls(open_ensemble(paths, classes))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of logits and scores."""
        return list(self._classifier.classes)

    @property
    def sample_rate(self) -> int:
        """Samples per second, Hz, that sounds are resampled to."""
        return self._classifier.sample_rate

    def predict(
        self,
        sound: Sound,
        rate: int | None = None,
        *,
        window: float | None = None,
        hop: float | None = None,
        pool: Pool = "mean",
    ) -> Prediction:
        """Return the scores of a sound: of the whole of it, or pooled over windows, which a long sound needs.

        Raises SonolexError for a sound that cannot be used, and for a whole one of more than ten minutes.
        """
        if window is not None:
            return self._windows(sound, rate, window, hop, pool).whole
        waveform = self._waveform(sound, rate)
        where = ARRAY if isinstance(sound, np.ndarray) else str(sound)
        logits = self._classifier.logits([self._frames(waveform, where)])
        end, scores = len(waveform) / self.sample_rate, self._classifier.scores(logits)
        return describe(self._classifier, where, 0.0, end, logits[0], scores[0])

    def timeline(
        self, sound: Sound, rate: int | None = None, *, window: float | None = None, hop: float | None = None
    ) -> list[Prediction]:
        """Return the scores of every window of a sound, in order of time. Raises SonolexError as `predict` does.

        `window` and `hop` are by default those of a model that has windows of its own, or 5 s and half of it.
        """
        return self._windows(sound, rate, *self._classifier.timeline_windows(window, hop), "mean").windows

    def predict_files(
        self,
        paths: Iterable[str | Path],
        *,
        window: float | None = None,
        hop: float | None = None,
        pool: Pool = "mean",
        threads: int | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Yield the prediction of every file, in order, computed on several threads; of one that cannot be used its Failure.

        By default there are as many threads as cores; `torch.set_num_threads(1)` keeps each to its own core.
        """
        windowing = None if window is None else self._windowing(window, hop, pool)
        files = [Path(path) for path in paths]
        for result in predict_files(self._classifier, files, windowing, threads=threads):
            yield result if isinstance(result, Failure) else result.whole

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

    @property
    def layers(self) -> dict[str, int]:
        """Layers that `embed` takes, and the width of each: those of the first network, and `textures`."""
        return dict(layer_sizes(self._classifier))

    @overload
    def embed(
        self, sound: Sound, rate: int | None = None, *, layer: str = ..., frames: Literal[False] = ...
    ) -> np.ndarray: ...

    @overload
    def embed(
        self, sound: Sound, rate: int | None = None, *, layer: str = ..., frames: Literal[True]
    ) -> FrameEmbeddings: ...

    def embed(
        self, sound: Sound, rate: int | None = None, *, layer: str = DEFAULT_LAYER, frames: bool = False
    ) -> np.ndarray | FrameEmbeddings:
        """Return the embedding (dim,) float32 of a sound, or with `frames` its embeddings along time.

        A layer is one of `layers`; of several models the first network counts. The embedding of a sound is the mean over the
        time steps of the layer. Raises SonolexError for a sound that cannot be used, and for an unknown layer.
        """
        with self._opening:
            embedder = self._embedders.get(layer) or open_embedder(self._classifier, layer)
            self._embedders[layer] = embedder
        return _embed(embedder, sound, rate, frames=frames)

    def _windows(self, sound: Sound, rate: int | None, window: float, hop: float | None, pool: Pool) -> FilePrediction:
        windowing = self._windowing(window, hop, pool)
        if not isinstance(sound, np.ndarray):
            (found,) = predict_files(self._classifier, [Path(sound)], windowing)
            if isinstance(found, Failure):
                raise SonolexError(f"{found.reason}: {found.message}")
            return found
        rate = require_rate(rate)
        windows = array_windows(mix_array(sound, self._classifier.reading["mix"]), rate, windowing)
        try:
            return predict_windows(self._classifier, ARRAY, windows, rate, windowing)
        except BadClip as error:
            raise SonolexError(str(error)) from None

    def _windowing(self, window: float, hop: float | None, pool: Pool) -> Windowing:
        return Windowing.of(window, hop, pool, shortest=self._classifier.front_end.min_samples / self.sample_rate)

    def _waveform(self, sound: Sound, rate: int | None) -> np.ndarray:
        return _read(sound, rate, self._classifier.reading)

    def _frames(self, waveform: np.ndarray, where: str) -> np.ndarray:
        try:
            return self._classifier.frames(waveform, where)
        except BadClip as error:
            raise SonolexError(str(error)) from None


@overload
def texture_statistics(sound: Sound, rate: int | None = None, *, frames: Literal[False] = ...) -> np.ndarray: ...


@overload
def texture_statistics(sound: Sound, rate: int | None = None, *, frames: Literal[True]) -> FrameEmbeddings: ...


def texture_statistics(sound: Sound, rate: int | None = None, *, frames: bool = False) -> np.ndarray | FrameEmbeddings:
    """Return the texture statistics (530,) float32 of a sound, which need no model, or with `frames` along its time.

    Raises SonolexError for a sound that cannot be used.
    """
    return _embed(TextureEmbedder(), sound, rate, frames=frames)


def _embed(embedder: Embedder, sound: Sound, rate: int | None, *, frames: bool) -> np.ndarray | FrameEmbeddings:
    where = ARRAY if isinstance(sound, np.ndarray) else str(sound)
    waveforms = _read(sound, rate, embedder.reading)[None]
    try:
        if frames:
            steps = embedder.steps(waveforms, where)
            return FrameEmbeddings(steps.seconds, steps.values[0])
        return np.asarray(embedder.clips(waveforms, where)[0])
    except BadClip as error:
        raise SonolexError(str(error)) from None


def _read(sound: Sound, rate: int | None, reading: Reading) -> np.ndarray:
    try:
        if isinstance(sound, np.ndarray):
            return read_array(sound, rate, **reading)
        return read_file(Path(sound), **reading, max_seconds=MAX_SECONDS)
    except BadClip as error:
        raise SonolexError(str(error)) from None
