"""Models that the server offers, by name, and what each says of a sound.

Conventions: waveforms (sample,) float32 at a model's rate; times are seconds from the start of the sound.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import SonolexError
from pipeline.inference.classifier import Classifier
from pipeline.inference.embedding import Embedder, open_embedder
from pipeline.inference.opening import open_classifier
from pipeline.inference.predicting import describe
from pipeline.inference.prediction import Prediction
from pipeline.spectrogram.decoding import prepare_waveform
from tools.serving.centroids import centroid_wav

_SOUNDS = 1000  # of tokens, kept in memory: 20 KB each


class ServedModel:
    """A bundle under the name that requests call it by. Several threads may use it at once."""

    def __init__(self, name: str, classifier: Classifier) -> None:
        """Prepare it: what is loaded on first use is loaded here, so that the first request does not wait for it."""
        self.name, self.classifier = name, classifier
        self.vocabulary: Vocabulary | None = next(iter(classifier.vocabularies.values()), None)
        self.centroid = lru_cache(_SOUNDS)(self._centroid)
        self._embedders: dict[str, Embedder] = {}  # by layer
        self._opening = Lock()  # of embedders
        self.predict(_noise(classifier), name)
        if self.has_centroids:
            self.centroid(0, 0)

    @property
    def has_centroids(self) -> bool:
        """Whether tokens have sounds: those of a front end that can be inverted have."""
        return self.vocabulary is not None and self.classifier.front_end.invertible

    def predict(self, waveform: np.ndarray, source: str) -> Prediction:
        """Return the prediction of a whole sound. Raises BadClip for one that cannot be used."""
        (prediction,) = self.predict_spans(waveform, [(0, len(waveform))], source)
        return prediction

    def predict_spans(self, waveform: np.ndarray, spans: Sequence[tuple[int, int]], source: str) -> list[Prediction]:
        """Return the predictions of parts [from, to) of a sound, in samples, each as a clip of its own."""
        classifier = self.classifier
        logits = classifier.logits([classifier.frames(waveform[start:stop], source) for start, stop in spans])
        scores = classifier.scores(logits)
        rate = classifier.sample_rate
        return [
            describe(classifier, source, start / rate, stop / rate, *of_classes)
            for (start, stop), *of_classes in zip(spans, logits, scores, strict=True)
        ]

    def embed(self, waveform: np.ndarray, layer: str, source: str) -> np.ndarray:
        """Return the embedding (dim,) float32 of a whole sound. Raises SonolexError for an unknown layer, BadClip."""
        with self._opening:
            if layer not in self._embedders:
                self._embedders[layer] = open_embedder(self.classifier, layer)
        embedder = self._embedders[layer]
        waveform = prepare_waveform(
            waveform,
            self.classifier.sample_rate,
            sample_rate=embedder.sample_rate,
            min_samples=embedder.min_samples,
            where=source,
            allow_silence=embedder.allow_silence,
        )
        return np.asarray(embedder.clips(waveform[None], source)[0])

    def _centroid(self, codebook: int, token: int) -> bytes:
        assert self.vocabulary is not None
        return centroid_wav(self.vocabulary, self.classifier.front_end, codebook, token)


def open_models(arguments: Sequence[str]) -> dict[str, ServedModel]:
    """Open bundles given as FOLDER or NAME=FOLDER; by default a folder's name is the model's.

    Raises SonolexError for a folder that is no bundle, and for two of one name.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        given, _, folder = argument.rpartition("=") if not Path(argument).exists() else ("", "", argument)
        name = given or Path(folder).resolve().name
        if name in folders:
            raise SonolexError(
                f"{folder}: expected bundles of different names, found another called {name}: {folders[name]}; name one: "
                f"`sonolex serve {folders[name]} {name}-2={folder}`"
            )
        if not name or "/" in name:
            raise SonolexError(f"{argument}: expected FOLDER, or NAME=FOLDER with a name without `/`")
        folders[name] = Path(folder)
    return {name: ServedModel(name, open_classifier(folder)) for name, folder in folders.items()}


def _noise(classifier: Classifier) -> np.ndarray:
    """Return a second of noise (sample,), or the shortest sound with a frame where that is longer."""
    length = max(classifier.sample_rate, classifier.front_end.min_samples)
    return np.random.default_rng(0).uniform(-0.1, 0.1, length).astype(np.float32)
