"""The task of naming a clip's classes: augmentation, the model, and a loss that follows from the label kind."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.artifacts.clips import LabelKind
from pipeline.training import augmentation
from pipeline.training.batches import Batch
from pipeline.training.losses import classification_loss, smooth_labels
from pipeline.training.settings import TrainParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classification:
    """Say which classes a clip has; targets are (clip, class) float32."""

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
                "train.augmentation.mixup_domain: power: expected a model with frames that are normalised alike in all "
                "clips, found one without: no effect"
            )

    def forward(self, model: nn.Module) -> Callable[..., Tensor]:
        """Return the model's way from picture (batch, frame, feature) and mask to logits."""
        classify: Callable[..., Tensor] = model.classify  # type: ignore[assignment]
        return classify

    def loss(
        self, model: nn.Module, forward: Callable[..., Tensor], batch: Batch, targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch after augmentation."""
        options = self.params.augmentation
        inputs = augmentation.warp_time(batch.inputs, batch.mask, options, self.time_axis)
        masks_tokens = isinstance(getattr(model, "mask_token", None), int)
        if masks_tokens:
            inputs = augmentation.replace_words(inputs, model.neighbours, options.word_noise)  # type: ignore[arg-type]
            inputs = augmentation.mask_tokens(inputs, batch.mask, model.mask_token, options.frame_masks)  # type: ignore[arg-type]
        picture = model.embed(inputs)  # type: ignore[operator]
        soft = smooth_labels(targets, self.params.label_smoothing, self.label_kind)
        mixed = augmentation.mix(picture, batch.mask, soft, options, self.log_unit)
        frame_masks = None if masks_tokens else options.frame_masks
        picture = augmentation.mask_picture(mixed.picture, frame_masks, options.band_masks)
        picture = augmentation.add_noise(picture, options.noise)
        logits = forward(picture, mixed.mask)
        return classification_loss(logits.float(), mixed.targets, self.label_kind), []
