"""X-ARES' interface (Zhang et al., 2025, "X-ARES: A Comprehensive Framework for Assessing Audio Encoder Performance").

X-ARES imports a file in which one name ends in Encoder:

    import sonolex.adapters.xares


    class MyEncoder(sonolex.adapters.xares.SonolexEncoder):
        def __init__(self) -> None:
            super().__init__("my-model#encoder")
"""

import torch
from torch import Tensor, nn

from pipeline.errors import SonolexError
from sonolex.adapters.batches import embed_steps, open_named


class SonolexEncoder(nn.Module):
    """An embedder along time; the network is no part of the module's parameters."""

    def __init__(self, name: str = "") -> None:
        """Open a model by its name (`sonolex/adapters/batches.py`). Raises SonolexError for a layer without time."""
        super().__init__()
        self.embedder = open_named(name)
        if self.embedder.hop is None:
            raise SonolexError(
                f"{name}: expected a layer along time, found {self.embedder.layer}; take another, such as encoder"
            )
        self.sampling_rate, self.output_dim = self.embedder.sample_rate, self.embedder.dim
        self.hop_size_in_ms = 1000 * self.embedder.hop

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings (sound, time step, output_dim) float32 of sounds (sound, sample) or of one (sample,)."""
        sounds = audio.detach().cpu().float()
        steps = embed_steps(self.embedder, (sounds if sounds.ndim > 1 else sounds[None]).numpy(), self.sampling_rate)
        return torch.from_numpy(steps.values).to(audio.device)
