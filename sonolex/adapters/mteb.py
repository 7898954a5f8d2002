"""MTEB's interface for its audio tasks, MAEB (Muennighoff et al., 2023, "MTEB: Massive Text Embedding Benchmark").

    import mteb
    from sonolex.adapters.mteb import SonolexModel

    mteb.evaluate(SonolexModel("my-model"), mteb.get_tasks(modalities=["audio"], task_types=["AudioClassification"]))

Imports `mteb` only where it asks for the model's metadata.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.errors import SonolexError
from sonolex.adapters.batches import embed_batch, open_named

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

Vectors = np.ndarray


class SonolexModel:
    """An encoder of audio; `EncoderProtocol` of mteb.models."""

    def __init__(
        self, model_name: str = "", revision: str | None = None, *, device: str | None = None, **_: object
    ) -> None:
        """Open a model by its name (`sonolex/adapters/batches.py`); revision and device are MTEB's, and not used."""
        self.name, self.embedder = model_name, open_named(model_name)

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """Return what MTEB records of a model; its name there has the form organisation/name."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty(
            {
                "name": f"sonolex/{_plain(self.name)}-{_plain(self.embedder.layer)}",
                "revision": self.embedder.digest,
                "embed_dim": self.embedder.dim,
                "modalities": ["audio"],
                "framework": ["PyTorch"],
                "similarity_fn_name": "cosine",
                "use_instructions": False,
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Sequence["AudioItem"]]], **_: object) -> Vectors:
        """Return embeddings (clip, dim) float32 of batches whose `audio` are mappings of array and sampling_rate.

        Arrays are (sample,) or (channel, sample), and may differ in length.
        """
        vectors = [self._embed(item) for batch in inputs for item in _audio(batch)]
        return np.stack(vectors) if vectors else np.empty((0, self.embedder.dim), dtype=np.float32)

    def similarity(self, embeddings1: Vectors, embeddings2: Vectors) -> Vectors:
        """Return the cosines of all pairs, (first, second)."""
        return np.asarray(_unit(embeddings1) @ _unit(embeddings2).T)

    def similarity_pairwise(self, embeddings1: Vectors, embeddings2: Vectors) -> Vectors:
        """Return the cosines of embeddings at the same place, (pair,)."""
        return np.asarray((_unit(embeddings1) * _unit(embeddings2)).sum(axis=1))

    def _embed(self, item: "AudioItem") -> Vectors:
        samples, rate = np.asarray(item["array"], dtype=np.float32), int(np.asarray(item["sampling_rate"]))
        mono = samples.mean(axis=0) if samples.ndim > 1 else samples
        return np.asarray(embed_batch(self.embedder, mono[None], rate)[0])


class AudioItem(Protocol):
    """A sound of MTEB: a mapping, or a decoder that is read like one."""

    def __getitem__(self, key: str, /) -> object: ...


def _audio(batch: Mapping[str, Sequence[AudioItem]]) -> Sequence[AudioItem]:
    if "audio" not in batch:
        raise SonolexError(f"expected a task with audio, found one with {', '.join(batch)}; choose tasks of audio")
    return batch["audio"]


def _unit(vectors: Vectors) -> Vectors:
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _plain(name: str) -> str:
    """Return the last part of a path, in characters that a name in MTEB may have."""
    last = name.partition("#")[0].rstrip("/").rpartition("/")[2] or "sonolex"
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in last)
