"""A running mean of the weights, which is what gets evaluated and stored (Polyak and Juditsky, 1992)."""

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average over every floating-point entry of a model's state, batch-norm statistics included."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self._live = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
        self.values = {name: t.clone() for name, t in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Early on the mean forgets faster, so that it leaves the start behind."""
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 9))
        torch._foreach_lerp_(list(self.values.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with their mean; a second call undoes the first."""
        for name, live in self._live.items():
            mean = self.values[name].clone()
            self.values[name].copy_(live)
            live.copy_(mean)
