"""Partners: other training clips that the clips of a batch are mixed with, drawn from the whole training set.

Sums and concatenations of N clips have N - 1 partners, all different and none the clip itself. With `absent_labels`,
`most_labels` or `same_group` a partner that does not fit is drawn again, and a clip for which none is found in some tries is
mixed with fewer. No partner is read beyond the length of the longest clip of its batch. Partners of mix-up are drawn
uniformly from all clips where `mixup_partners` is `all`, as in AST and PSLA, whose authors found partners from
class-balanced batches worse.

Partners are drawn on the CPU by a generator of their own, so that the draws of other augmentation do not depend on them.
Unknown labels count as labels that a clip has not.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import SonolexError
from pipeline.training.augmentation.settings import AugmentationParams, PartnersParams

_TRIES = 20  # draws of a partner that fits


class Use(IntEnum):
    """What a partner is mixed by."""

    SUM = 0
    CONCATENATE = 1
    MIXUP = 2


class Partners(NamedTuple):
    """Partners of a batch's clips; P partners."""

    rows: Tensor  # (P,) rows of the training clips
    owners: Tensor  # (P,) position in the batch of the clip that each is mixed with
    uses: Tensor  # (P,) of Use
    starts: Tensor  # (P,) in [0, 1), where a partner that is longer than the batch's clips is cut


class PartnerSampler:
    """Sampler of the partners of training clips."""

    def __init__(
        self, params: AugmentationParams, targets: Tensor, groups: Sequence[str] = (), *, sums: bool = True
    ) -> None:
        """Take the targets (clip, class) of all training clips, and the names of their groups.

        Without `sums`, where a model's input has no powers, no partners of sums are drawn. Raises SonolexError where
        partners of the same group are asked for and no group has two clips.
        """
        self._params, self._labels = params, targets > 0  # not of a label that is unknown, NaN
        self._summed = params.sum_clips.probability if sums else 0.0
        self._groups: _Groups | None = None
        for name in ("sum_clips", "concatenate_clips"):
            part: PartnersParams = getattr(params, name)
            if part.probability and part.same_group:
                self._groups = _Groups(groups, f"train.augmentation.{name}.same_group")

    @property
    def draws_any(self) -> bool:
        """Whether clips may have partners."""
        from_all = self._params.mixup_partners == "all" and self._params.mixup_probability > 0
        return from_all or self._summed > 0 or self._params.concatenate_clips.probability > 0

    def draw(self, rows: Sequence[int], generator: torch.Generator) -> Partners | None:
        """Draw the partners of the clips of a batch; None where it has none."""
        own, params = torch.tensor(rows), self._params
        found = []
        summed, joined = self._summed, params.concatenate_clips.probability
        if summed or joined:
            place = torch.rand(len(own), generator=generator)
            found.append(self._draw_others(own, place < summed, params.sum_clips, Use.SUM, generator))
            chosen = (place >= summed) & (place < summed + joined)
            found.append(self._draw_others(own, chosen, params.concatenate_clips, Use.CONCATENATE, generator))
        if params.mixup_partners == "all" and params.mixup_probability:
            owners = (torch.rand(len(own), generator=generator) < params.mixup_probability).nonzero()[:, 0]
            drawn = torch.randint(0, len(self._labels), (len(owners),), generator=generator)
            found.append(Partners(drawn, owners, torch.full_like(owners, Use.MIXUP), torch.zeros(len(owners))))
        partners = Partners(*map(torch.cat, zip(*found, strict=True))) if found else None
        return partners if partners is not None and len(partners.rows) else None

    def _draw_others(
        self, own: Tensor, chosen: Tensor, params: PartnersParams, use: Use, generator: torch.Generator
    ) -> Partners:
        """Draw partners for the chosen clips of a batch, one after the other."""
        owners = chosen.nonzero()[:, 0]
        low, high = params.num_clips
        wanted = torch.randint(low - 1, high, (len(owners),), generator=generator)
        mixture = own[owners][:, None]  # rows of the clips of each mixture so far; -1 = none
        for number in range(high - 1):
            drawn = self._draw_one(mixture, wanted > number, params, generator)
            mixture = torch.cat([mixture, drawn[:, None]], dim=1)
        places, order = (mixture[:, 1:] >= 0).nonzero(as_tuple=True)
        starts = torch.rand(len(places), generator=generator) * params.random_start
        return Partners(mixture[places, order + 1], owners[places], torch.full_like(places, use), starts)

    def _draw_one(self, mixture: Tensor, open_: Tensor, params: PartnersParams, generator: torch.Generator) -> Tensor:
        """Draw one more clip for the mixtures (M, clip) that are open: rows (M,), -1 where none fits."""
        drawn = torch.full((len(mixture),), -1)
        labels = (self._labels[mixture] & (mixture >= 0)[:, :, None]).any(1)
        for _ in range(_TRIES):
            waiting = (open_ & (drawn < 0)).nonzero()[:, 0]
            if not len(waiting):
                break
            tried = self._candidates(mixture[waiting, 0], params, generator)
            fits = (mixture[waiting] != tried[:, None]).all(1)
            if params.absent_labels:
                fits &= ~(labels[waiting] & self._labels[tried]).any(1)
            if params.most_labels is not None:
                fits &= (labels[waiting] | self._labels[tried]).sum(1) <= params.most_labels
            drawn[waiting[fits]] = tried[fits]
        return drawn

    def _candidates(self, own: Tensor, params: PartnersParams, generator: torch.Generator) -> Tensor:
        if params.same_group and self._groups is not None:
            return self._groups.draw(own, generator)
        return torch.randint(0, len(self._labels), (len(own),), generator=generator)


class _Groups:
    """Groups of clips, to draw from."""

    def __init__(self, names: Sequence[str], setting: str) -> None:
        _, group = np.unique(np.array(names, dtype=str), return_inverse=True)
        self._group = torch.from_numpy(group)
        self._order = self._group.argsort(stable=True)
        self._sizes = torch.bincount(self._group)
        self._starts = self._sizes.cumsum(0) - self._sizes
        if not (self._sizes > 1).any():
            raise SonolexError(
                f"{setting}: expected groups of at least two training clips, found {len(self._sizes)} groups of "
                f"{len(names)} clips; set it to false, or give the clips groups (docs/corpora.md)"
            )

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a clip of the group of each of these."""
        group = self._group[rows]
        place = (torch.rand(len(rows), generator=generator) * self._sizes[group]).long()
        return self._order[self._starts[group] + place]


def expected_positives(
    shares: Tensor, params: AugmentationParams, *, others: Tensor | None = None, union: bool = True, sums: bool = True
) -> Tensor:
    """Return the expected mean target of each class, (class,), after sums, concatenations and mix-up.

    `shares` are the shares of positives among the clips of an epoch, `others` those among all training clips, which partners
    are drawn from; None = the same. Partners are taken as independent draws, which restrictions on labels and groups make
    less exact. `union` and `sums` are as in `mix_labels` and `PartnerSampler`.
    """
    others = shares if others is None else others
    expected = shares.clone()
    parts = [params.concatenate_clips, *([params.sum_clips] if sums else [])]
    for part in parts:
        low, high = part.num_clips
        mixed = torch.stack([_share_of(num, shares, others, union=union) for num in range(low, high + 1)]).mean(0)
        expected += part.probability * (mixed - shares)
    if params.mixup_partners == "all":  # Beta(alpha, alpha) has the mean 1/2
        expected += params.mixup_probability / 2 * (others - expected)
    return expected


def _share_of(num: int, shares: Tensor, others: Tensor, *, union: bool) -> Tensor:
    """Return the expected mean target of mixtures of `num` clips."""
    if union:
        return 1 - (1 - shares) * (1 - others) ** (num - 1)
    return (shares + (num - 1) * others) / num
