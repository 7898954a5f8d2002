"""HEAR 2021's interface (Turian et al., 2022, "HEAR: Holistic Evaluation of Audio Representations", arXiv 2203.03022).

    hear-validator sonolex.adapters.hear --model my-model
    python -m heareval.embeddings.runner sonolex.adapters.hear --model my-model --model-options '{"layer": "stem"}'

The model is named as in `sonolex/adapters/batches.py`; without one the embeddings are texture statistics. Embeddings are
computed on the CPU, and returned on the device of the audio.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sonolex.adapters.batches import embed_batch, embed_steps, open_named

_RATES = (16000, 22050, 44100, 48000)  # that HEAR resamples its sounds to, Hz


class HearModel(nn.Module):
    """An embedder as HEAR wants it; the network is no part of the module's parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.embedder = open_named(name)
        rates = [rate for rate in _RATES if rate >= self.embedder.sample_rate]
        self.sample_rate = rates[0] if rates else _RATES[-1]  # sounds are resampled to the model's own
        self.scene_embedding_size = self.timestamp_embedding_size = self.embedder.dim


def load_model(model_file_path: str | None = None, layer: str = "") -> HearModel:
    """Open a model, or a layer of it. Raises SonolexError for what is none."""
    name = model_file_path or ""
    return HearModel(f"{name}#{layer}" if layer else name)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one embedding a sound, (sound, scene_embedding_size) float32, of sounds (sound, sample) in [-1, 1]."""
    vectors = embed_batch(model.embedder, _array(audio), model.sample_rate)
    return torch.from_numpy(vectors).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return embeddings (sound, time step, timestamp_embedding_size) float32, and the middles of the steps, in ms."""
    steps = embed_steps(model.embedder, _array(audio), model.sample_rate)
    milliseconds = torch.from_numpy(1000 * steps.seconds).to(torch.float32)
    values = torch.from_numpy(steps.values).to(audio.device)
    return values, milliseconds.to(audio.device).expand(len(values), -1)


def _array(audio: Tensor) -> np.ndarray:
    return np.asarray(audio.detach().cpu().numpy(), dtype=np.float32)
