"""ARCH's interface (La Quatra et al., 2024, "Benchmarking Representations for Speech, Music, and Acoustic Events").

    from arch_eval import ESC50  # the benchmark's package
    from sonolex.adapters.arch import SonolexModel

    ESC50("ESC-50").evaluate(SonolexModel("my-model"), mode="linear", device="cpu")

The methods are those of `arch_eval.Model`, which ARCH calls and does not look for by class.
"""

import numpy as np
import torch
from torch import Tensor

from sonolex.adapters.batches import embed_batch, embed_steps, open_named


class SonolexModel:
    """Embeddings of single sounds, at the model's rate."""

    def __init__(self, name: str = "") -> None:
        """Open a model by its name (`sonolex/adapters/batches.py`)."""
        self.embedder = open_named(name)

    def get_embeddings(self, audio: np.ndarray | Tensor, **_: object) -> Tensor:
        """Return the embedding (dim,) float32 of a sound (sample,)."""
        return torch.from_numpy(embed_batch(self.embedder, _array(audio), self.embedder.sample_rate)[0])

    def get_token_embeddings(self, audio: np.ndarray | Tensor, **_: object) -> Tensor:
        """Return the embeddings along time (time step, dim) float32 of a sound (sample,)."""
        return torch.from_numpy(embed_steps(self.embedder, _array(audio), self.embedder.sample_rate).values[0])

    def get_classification_embedding_size(self) -> int:
        """Return the width of `get_embeddings`."""
        return self.embedder.dim

    def get_token_embedding_size(self) -> int:
        """Return the width of `get_token_embeddings`."""
        return self.embedder.dim

    def get_sampling_rate(self) -> int:
        """Return the rate that sounds must have, Hz."""
        return self.embedder.sample_rate


def _array(audio: np.ndarray | Tensor) -> np.ndarray:
    """Return a sound (sample,) as a batch of one; ARCH has arrays and tensors."""
    return np.asarray(audio, dtype=np.float32).reshape(1, -1)
