"""Classification task: augmentation, forward pass, and the loss of the corpus's label kind."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts.clips import LabelKind
from pipeline.models.network import Network
from pipeline.training import augmentation
from pipeline.training.batches import Batch
from pipeline.training.settings import TrainParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classification:
    """Predict the classes of a clip; targets are (clip, class) float32, NaN where unknown."""

    params: TrainParams
    label_kind: LabelKind
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
        soft = smooth_labels(targets, self.params.label_smoothing, self.label_kind)
        mixed = augmentation.mix(features, batch.mask, soft, options, self.log_unit)
        frame_masks = options.frame_masks if mask_token is None else None
        features = augmentation.mask_features(mixed.features, mixed.mask, frame_masks, options.band_masks)
        features = augmentation.add_noise(features, options.noise)
        logits = forward(features, mixed.mask)
        return classification_loss(logits.float(), mixed.targets, self.label_kind), []


def classification_loss(logits: Tensor, targets: Tensor, label_kind: LabelKind) -> Tensor:
    """Cross entropy against soft targets (one label per clip), or mean binary cross entropy over classes (many).

    Where targets are unknown (NaN), a clip's loss is the mean over its other classes, and 0 if it has none; the loss of the
    batch is the mean over clips, so that micro-batches add up.
    """
    if label_kind == "one":
        return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
    unknown = targets.isnan()
    if not unknown.any():
        return F.binary_cross_entropy_with_logits(logits, targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(0), reduction="none")
    return (losses.masked_fill(unknown, 0.0).sum(1) / (~unknown).sum(1).clamp(min=1)).mean()


def smooth_labels(targets: Tensor, smoothing: float, label_kind: LabelKind) -> Tensor:
    """Interpolate targets by `smoothing` towards the uniform target: 1 / classes (one), or 1 / 2 (many)."""
    uninformed = 1 / targets.shape[1] if label_kind == "one" else 0.5
    return targets * (1 - smoothing) + smoothing * uninformed
