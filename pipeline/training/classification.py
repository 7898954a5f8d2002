"""Classification task: augmentation, forward pass, and the loss (`pipeline/training/losses.py`)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.artifacts.clips import Link
from pipeline.models.network import Network
from pipeline.training import augmentation
from pipeline.training.batches import Batch
from pipeline.training.losses import Loss
from pipeline.training.settings import TrainParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classification:
    """Predict the classes of a clip; targets are (clip, class) float32, NaN where unknown."""

    params: TrainParams
    loss_function: Loss
    time_axis: int  # of a batch's inputs
    log_unit: float | None  # see `augmentation.mix`
    section: str = "train"
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        options = self.params.augmentation
        if options.mixup_domain == "power" and options.mixup_probability and self.log_unit is None:
            log.warning(
                "train.augmentation.mixup_domain: power: expected a model that reads frames with the same normalisation in "
                "all clips, found another: no effect"
            )

    def forward(self, model: Network) -> Callable[..., Tensor]:
        """Return the function from feature map (batch, frame, feature) and mask to logits."""
        return model.classify

    def loss(
        self, model: Network, forward: Callable[..., Tensor], batch: Batch, targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch after augmentation."""
        options = self.params.augmentation
        inputs = augmentation.warp_time(batch.inputs, batch.mask, options, self.time_axis)
        mask_token = model.input.mask_token
        if mask_token is not None:
            inputs = augmentation.replace_tokens(inputs, model.input.neighbours, options.token_noise)
            inputs = augmentation.mask_tokens(inputs, batch.mask, mask_token, options.frame_masks)
        features = model.embed(inputs)
        soft = smooth_labels(targets, self.params.label_smoothing, self.loss_function.link)
        mixed = augmentation.mix(features, batch.mask, soft, options, self.log_unit)
        frame_masks = options.frame_masks if mask_token is None else None
        features = augmentation.mask_features(
            mixed.features, mixed.mask, frame_masks, options.band_masks, model.input.num_channels
        )
        features = augmentation.add_noise(features, options.noise)
        logits = forward(features, mixed.mask)
        return self.loss_function(logits.float(), mixed.targets), []


def smooth_labels(targets: Tensor, smoothing: float, link: Link) -> Tensor:
    """Interpolate targets by `smoothing` towards the uniform target: 1 / classes (softmax), or 1 / 2 (sigmoid)."""
    uninformed = 1 / targets.shape[1] if link == "softmax" else 0.5
    return targets * (1 - smoothing) + smoothing * uninformed
