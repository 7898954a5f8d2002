"""A network for images and attention over time, as in PSLA (Gong, Chung and Glass, 2021, arXiv 2102.01243).

Log-mel frames, normalised, go through a backbone of timm as a picture of one channel. Each of its positions along time is
scored for each class; a head's attention, normalised over time for each class, weighs the scores into a probability, and
heads are averaged by learned weights. What comes out is the logit of that probability, computed from logarithms alone, so
that losses which take logits are right, and no probability of 0 or 1 has to be cut off.

Conventions: B batch, T frame, N position along time (T / 32), C channel, H head, K class.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator
from torch import Tensor, nn

from pipeline.models.classifier import PictureClassifier
from pipeline.params import Params as BaseParams

if TYPE_CHECKING:  # params are checked without timm, which takes longer to import than torch
    from pipeline.models.backbones import Backbone, Start

READS = "frames"

BACKBONES = (
    *(f"{family}_b{size}" for family in ("efficientnet", "tf_efficientnet") for size in range(8)),
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "resnet50",
)


class StartParams(BaseParams):
    kind: Literal["imagenet"]
    source: str = Field(min_length=1)  # a name of timm's weights, such as tf_efficientnet_b2.aa_in1k, or a file
    digest: str | None  # SHA-256 of the weights file, its first 32 digits; null takes whatever is there


class Params(BaseParams):
    kind: Literal["psla"]
    normalisation: Literal["corpus", "clip", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit; PSLA takes 1
    backbone: str  # a network of timm
    start: StartParams | None  # weights of the backbone to start from
    drop_path: float = Field(ge=0, lt=1)  # of the last block; earlier ones less, in proportion to depth
    heads: NonNegativeInt  # of the attention; 0 = the plain mean over time

    @field_validator("backbone")
    @classmethod
    def _is_known(cls, backbone: str) -> str:
        if backbone not in BACKBONES:
            raise ValueError(f"expected one of {', '.join(BACKBONES)}")
        return backbone


class AttentionPooling(nn.Module):
    """Map positions (B, N, C) and their mask (B, N) to logits (B, K) of probabilities pooled over time."""

    def __init__(self, features: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        outputs = max(heads, 1) * num_classes
        self.score = nn.Linear(features, outputs)
        self.attend = nn.Linear(features, outputs) if heads else None
        # Logarithms of the heads' weights. What these add up to cancels out of the logit, so it is that of an average.
        self.head_weights = nn.Parameter(torch.zeros(heads)) if heads > 1 else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = self._by_head(self.score(x))  # (B, N, H, K)
        weights = F.logsigmoid(self._by_head(self.attend(x))) if self.attend is not None else torch.zeros_like(scores)
        if mask is not None:
            weights = weights.masked_fill(~mask[:, :, None, None], -torch.inf)
        weights = weights.log_softmax(dim=1)  # a part of the attention: over the sum, over time, of the sigmoids
        if self.head_weights is not None:
            weights = weights + self.head_weights[:, None]
        present = torch.logsumexp(weights + F.logsigmoid(scores), dim=(1, 2))
        absent = torch.logsumexp(weights + F.logsigmoid(-scores), dim=(1, 2))
        return present - absent

    def _by_head(self, outputs: Tensor) -> Tensor:
        """Return (B, N, H * K) as (B, N, H, K), in float32 at least: logarithms of small probabilities need it."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return precise.reshape(*precise.shape[:2], -1, self.num_classes)


class AttentionOverTime(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, backbone: "Backbone", *, heads: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = AttentionPooling(backbone.num_features, num_classes, heads)

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.pooling(*self.backbone(picture, mask))
        return logits


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> AttentionOverTime:
    """Build the model, with random weights, for frames of any number of bands."""
    from pipeline.models.backbones import Backbone

    backbone = Backbone(params.backbone, params.drop_path)
    return AttentionOverTime(backbone, heads=params.heads, num_classes=num_classes)


def open_start(params: Params, front_end: dict[str, Any]) -> "Start | None":
    """Open the weights that a fresh model starts from, if its params name any; see `start_from`."""
    if params.start is None:
        return None
    from pipeline.models.backbones import read_start

    return read_start(params.start.source, params.start.digest)


def start_from(model: AttentionOverTime, params: Params, start: "Start") -> None:
    """Put opened weights into a fresh model's backbone. Raises SonolexError where they do not fit."""
    model.backbone.start_from(start)
