"""Classification losses: cross entropy, and binary ones for classes that are judged one by one.

    cross_entropy   softmax; one label a clip
    bce             sigmoid; any number of labels a clip, also exactly one, as AST on speech commands
    focal           bce weighted by (1 - p_t)^gamma (Lin et al., 2017, arXiv 1708.02002)
    asymmetric      focal with a gamma each for positives and negatives, and a margin (Ridnik et al., 2021, arXiv 2009.14119)

Targets may be soft (mix-up, smoothing, labels of one's own): a binary loss is y times that of a positive plus 1 - y times
that of a negative, with y the target. p is the probability of the class, p_t that of the truth: p of a positive, 1 - p of a
negative.

Where targets are unknown (NaN), a clip's loss is the mean over its other classes, and 0 if it has none; cross entropy takes
the softmax over the known classes. The loss of a batch is the mean over clips, so that micro-batches add up.

Conventions: logits and targets (clip, class) float32. All losses and their gradients are finite for any finite logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts.clips import LINKS, LabelKind, Link
from pipeline.training.families import family_matrix
from pipeline.training.loss_settings import (
    AsymmetricParams,
    AutoParams,
    BceParams,
    CrossEntropyParams,
    FocalParams,
    LossParams,
    families_of,
    require_label_kind,
)

ClassLosses: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # from logits and targets to losses, (clip, class) each

_SMALLEST = 1e-12  # probability; at 0, powers and logarithms have no finite slope


class Loss(Protocol):
    """Interface of losses of a batch."""

    @property
    def link(self) -> Link:
        """Return the function from logits to probabilities that the loss trains."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the clips, a scalar."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy against soft targets."""

    link: Link = "softmax"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Not asked whether there are any, for which a GPU would be waited for; not -inf, whose softmax over no class is NaN.
        logits = logits.masked_fill(targets.isnan(), torch.finfo(logits.dtype).min)
        targets = targets.nan_to_num(0)
        return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


@dataclass(frozen=True)
class BinaryLoss:
    """Mean of the classes' losses, and perhaps a term for families of classes."""

    class_losses: ClassLosses | None = None  # None = binary cross entropy
    families: Tensor | None = None  # (family, class) bool
    family_weight: float = 0.0
    link: Link = "sigmoid"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = _mean_over_known(logits, targets, self.class_losses)
        if self.families is None:
            return loss
        of_families = _of_families(logits, targets, self.families.to(logits.device))
        return loss + self.family_weight * _mean_over_known(*of_families)


def loss_of(label_kind: LabelKind) -> Loss:
    """Return the loss of `kind: auto`: cross entropy (one label a clip), or binary cross entropy (many)."""
    return CrossEntropy() if LINKS[label_kind] == "softmax" else BinaryLoss()


def build_loss(params: LossParams, label_kind: LabelKind, classes: Sequence[str], shares: Callable[[], Tensor]) -> Loss:
    """Return the loss of the params; `shares` returns the part of the training clips that has each class, (class,).

    It is called by losses that weight positives alone: it computes on the targets of all clips.

    Raises ParamsError for a loss that does not fit the label kind, and for a table of families that does not fit the
    classes.
    """
    require_label_kind(params, label_kind)
    if isinstance(params, AutoParams):
        return loss_of(label_kind)
    if isinstance(params, CrossEntropyParams):
        return CrossEntropy()
    families = families_of(params)
    if families is None:
        return BinaryLoss(_class_losses(params, shares))
    matrix = torch.from_numpy(family_matrix(families.groups, classes))
    return BinaryLoss(_class_losses(params, shares), matrix, families.weight)


def _class_losses(
    params: BceParams | FocalParams | AsymmetricParams, shares: Callable[[], Tensor]
) -> ClassLosses | None:
    match params:
        case AsymmetricParams():
            return partial(
                asymmetric,
                gamma_positive=params.gamma_positive, gamma_negative=params.gamma_negative, margin=params.margin,
            )  # fmt: skip
        case FocalParams():
            return partial(focal, gamma=params.gamma, pos_weight=_pos_weight(params, shares))
        case BceParams(pos_weight="none"):
            return None
        case BceParams():
            return partial(focal, gamma=0.0, pos_weight=_pos_weight(params, shares))
        case _:
            assert_never(params)


def _pos_weight(params: BceParams | FocalParams, shares: Callable[[], Tensor]) -> Tensor | None:
    return None if params.pos_weight == "none" else balancing_weights(shares())


def focal(logits: Tensor, targets: Tensor, *, gamma: float, pos_weight: Tensor | None = None) -> Tensor:
    """Return the focal loss (clip, class); `pos_weight` (class,) multiplies that of positives."""
    positive, negative = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    if gamma:  # powers of probabilities as exponentials, which have finite slopes at 0
        positive, negative = positive * (-gamma * negative).exp(), negative * (-gamma * positive).exp()
    if pos_weight is not None:
        positive = positive * pos_weight.to(logits.device)
    return targets * positive + (1 - targets) * negative


def asymmetric(
    logits: Tensor, targets: Tensor, *, gamma_positive: float, gamma_negative: float, margin: float
) -> Tensor:
    """Return the asymmetric loss (clip, class): negatives with p up to `margin` cost nothing, others as if p were less."""
    if not margin:
        yes = focal(logits, torch.ones_like(logits), gamma=gamma_positive)
        return targets * yes + (1 - targets) * focal(logits, torch.zeros_like(logits), gamma=gamma_negative)
    yes = focal(logits, torch.ones_like(logits), gamma=gamma_positive)
    absent = (logits.neg().sigmoid() + margin).clamp(
        min=_SMALLEST, max=1
    )  # 1 - max(p - margin, 0), without cancellation
    present = (logits.sigmoid() - margin).clamp(min=_SMALLEST)
    return targets * yes - (1 - targets) * present**gamma_negative * absent.log()


def balancing_weights(shares: Tensor) -> Tensor:
    """Return negatives / positives (class,) for these shares of positives; 1 where all clips are one or the other."""
    both = (shares > 0) & (shares < 1)
    return torch.where(both, (1 - shares) / shares.clamp(min=torch.finfo(shares.dtype).tiny), 1.0)


def positive_shares(targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the part of the clips that has each class, (class,) float32, of those for which it is known.

    `weights` (clip,) is how often each clip is drawn; None = all alike. Targets of all clips of a batch that are mixed by
    mix-up have the same mean as before, so mix-up leaves the shares as they are.
    """
    drawn = torch.ones(len(targets), 1, dtype=torch.float64) if weights is None else weights.double()[:, None]
    known = (drawn * ~targets.isnan()).sum(0)
    positives = (drawn * targets.nan_to_num(0)).sum(0)
    return (positives / known.clamp(min=torch.finfo(torch.float64).tiny)).float()


def _mean_over_known(logits: Tensor, targets: Tensor, class_losses: ClassLosses | None = None) -> Tensor:
    unknown = targets.isnan()
    if not unknown.any():
        if class_losses is None:
            return F.binary_cross_entropy_with_logits(logits, targets)
        return class_losses(logits, targets).mean()
    known = targets.nan_to_num(0)
    losses = (
        F.binary_cross_entropy_with_logits(logits, known, reduction="none")
        if class_losses is None
        else class_losses(logits, known)
    )
    return (losses.masked_fill(unknown, 0.0).sum(1) / (~unknown).sum(1).clamp(min=1)).mean()


def _of_families(logits: Tensor, targets: Tensor, families: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit and the largest target of each family's classes, (clip, family) each.

    A family with an unknown class is unknown, unless a class that is known is more likely present than not.
    """
    member = families[None]
    highest = logits[:, None].masked_fill(~member, -torch.inf).amax(2)
    known = targets.nan_to_num(-1)[:, None].masked_fill(~member, -1.0).amax(2)
    unknown = (targets.isnan()[:, None] & member).any(2) & (known < 0.5)
    return highest, known.masked_fill(unknown, torch.nan)
