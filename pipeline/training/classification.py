"""Classification task: augmentation, forward pass, and the loss (`pipeline/training/losses.py`)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pipeline.artifacts.clips import Link
from pipeline.models.network import Network
from pipeline.training.augmentation.applying import Augmentation, FrameTokenizer
from pipeline.training.augmentation.noise import NO_NOISE, NoiseBanks
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.batches import Batch
from pipeline.training.losses import Loss
from pipeline.training.settings import TrainParams


@dataclass(frozen=True)
class Classification:
    """Predict the classes of a clip; targets are (clip, class) float32, NaN where unknown."""

    params: TrainParams
    loss_function: Loss
    time_axis: int  # of a batch's inputs
    scale: PowerScale | None  # of log-mel frames; None = values that are no log powers
    banks: NoiseBanks = NO_NOISE
    tokenizer: FrameTokenizer | None = None  # of augmented frames, for a model that reads tokens
    section: str = "train"
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.augmentation.warn_without_effect()

    @cached_property
    def augmentation(self) -> Augmentation:
        """Return the augmentation of batches."""
        return Augmentation(self.params.augmentation, self.time_axis, self.scale, self.banks, self.tokenizer)

    def forward(self, model: Network) -> Callable[..., Tensor]:
        """Return the function from feature map (batch, frame, feature) and mask to logits."""
        return model.classify

    def loss(
        self, model: Network, forward: Callable[..., Tensor], batch: Batch, targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch after augmentation."""
        several = self.loss_function.link == "sigmoid"
        mixed = self.augmentation.apply(model, batch, targets, self._smooth, union=several)
        logits = forward(mixed.features, mixed.mask)
        return self.loss_function(logits.float(), mixed.targets), []

    def _smooth(self, targets: Tensor) -> Tensor:
        return smooth_labels(targets, self.params.label_smoothing, self.loss_function.link)


def smooth_labels(targets: Tensor, smoothing: float, link: Link) -> Tensor:
    """Interpolate targets by `smoothing` towards the uniform target: 1 / classes (softmax), or 1 / 2 (sigmoid)."""
    uninformed = 1 / targets.shape[1] if link == "softmax" else 0.5
    return targets * (1 - smoothing) + smoothing * uninformed
