"""Mixtures of clips: mix-up with soft labels, sums of clips, and concatenations.

Mix-up (Zhang et al., 2018) weights two clips and their targets alike. That of AST and PSLA mixes waveforms (after Tokozume
et al., 2018, arXiv 1711.10282), which are not available here. Without cross terms, the power of a sum of waveforms is the
sum of their powers, so `mixup_domain: power` adds the powers, weighted by the squares of the mixing weights, and takes the
logarithm. A sum of clips adds powers too.

A sum or concatenation has the labels of all its clips: their union where a loss takes several labels, else equal shares of
them.

Conventions: B clips of a batch, P partners, which follow them (`pipeline/training/augmentation/partners.py`), N = B + P; T
frame, F feature, K class. Masks (N, T) are True for real frames, which are the first of a clip.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.augmentation.draws import draw_uniform
from pipeline.training.augmentation.partners import Partners, Use
from pipeline.training.augmentation.power import NEPERS, PowerScale
from pipeline.training.augmentation.settings import AugmentationParams, ConcatenationParams, PartnersParams
from pipeline.training.augmentation.time import take_frames


class Mixed(NamedTuple):
    features: Tensor  # (B, T, F)
    mask: Tensor | None  # (B, T): a mixture is as long as the longer of its two
    targets: Tensor  # (B, K)


def mix(
    features: Tensor,
    mask: Tensor | None,
    targets: Tensor,
    params: AugmentationParams,
    log_unit: float | None,
    partners: Partners | None = None,
) -> Mixed:
    """Mix each clip, with the given probability, with another; targets (N, K) are mixed with the same weights.

    Others are of the batch, or with `mixup_partners: all` those of `partners`, whose features and targets come behind.

    `log_unit` is the size of one unit of the feature map in natural logarithms of power, or None where it has no such unit
    (tokens): these feature maps are mixed linearly, whatever `mixup_domain` is.
    """
    own = Mixed(features, mask, targets)
    if partners is not None:
        count = len(features) - len(partners.owners)
        own = Mixed(features[:count], None if mask is None else mask[:count], targets[:count])
    count, from_batch = len(own.features), params.mixup_partners == "batch"
    if params.mixup_probability == 0 or (from_batch and count < 2):
        return own
    weight = draw_weights(count, params.mixup_alpha)
    if from_batch:
        weight = torch.where(torch.rand(count) < params.mixup_probability, weight, 1.0)
        partner = torch.randperm(count)
    else:
        partner = _partner_rows(count, partners)
        weight = torch.where(partner < count, 1.0, weight)
    weight, partner = weight.to(features.device), partner.to(features.device)
    other = Mixed(features[partner], None if mask is None else mask[partner], targets[partner])
    return _mix_pairs(own, other, weight, log_unit if params.mixup_domain == "power" else None)


def _mix_pairs(own: Mixed, other: Mixed, weight: Tensor, log_unit: float | None) -> Mixed:
    """Mix pairs of clips with weights (B,), in powers unless `log_unit` is None."""
    longer = None
    if own.mask is not None and other.mask is not None:
        longer = own.mask | (other.mask & (weight < 1)[:, None])
    by_clip = weight[:, None, None]
    if log_unit is not None:
        first = _loudness(own.features, own.mask, log_unit, by_clip)
        second = _loudness(other.features, other.mask, log_unit, 1 - by_clip)
        mixed = torch.logaddexp(first, second) / log_unit
        if longer is not None:
            mixed = mixed.masked_fill(~longer[:, :, None], 0.0)
    else:
        mixed = by_clip * own.features + (1 - by_clip) * other.features
    share = weight[:, None]  # where it is 1, labels that are unknown of the other clip have no part
    targets = torch.where(share == 1, own.targets, share * own.targets + (1 - share) * other.targets)
    return Mixed(mixed, longer, targets)


def draw_weights(count: int, alpha: float) -> Tensor:
    """Draw weights (count,) of Beta(alpha, alpha), on the CPU."""
    # From Gamma draws; torch's own Beta ignores zero-size shapes and is slower to construct.
    gammas = torch._standard_gamma(torch.full((2, count), alpha))
    return gammas[0] / gammas.sum(0).clamp(min=1e-20)


def _partner_rows(count: int, partners: Partners | None) -> Tensor:
    """Return the row of the other clip that each of `count` clips is mixed with, its own where it is not: (B,)."""
    rows = torch.arange(count)
    if partners is not None:
        places = (partners.uses == Use.MIXUP).nonzero()[:, 0]
        rows[partners.owners[places]] = count + places
    return rows


def _loudness(features: Tensor, mask: Tensor | None, log_unit: float, share: Tensor) -> Tensor:
    """Return the log power of each waveform scaled by `share` (B, 1, 1), with silence after its end."""
    loudness = features * log_unit + 2 * share.log()
    return loudness if mask is None else loudness.masked_fill(~mask[:, :, None], -torch.inf)


def sum_clips(
    features: Tensor, mask: Tensor | None, partners: Partners, params: PartnersParams, scale: PowerScale
) -> tuple[Tensor, Tensor | None]:
    """Add to each clip the partners of its sum; return features and mask of all N clips.

    A sum is as long as its longest clip. With `random_start` shorter ones begin anywhere in it, else at its start.
    """
    parts = _find_parts(features, mask, partners, Use.SUM)
    if parts is None:
        return features, mask
    frames = torch.arange(features.shape[1], device=features.device)
    longest = torch.zeros_like(parts.clips).scatter_reduce(0, parts.owners, parts.lengths, "amax")
    begin = _draw_begins(longest[parts.owners] - parts.lengths, random=params.random_start)[:, None]
    inside = (frames >= begin) & (frames < begin + parts.lengths[:, None])
    moved = take_frames(features[parts.rows], (frames - begin).clamp(min=0))
    powers = (moved * scale.log_unit + _draw_gains(parts, params)).exp().masked_fill(~inside[:, :, None], 0.0)
    sums = powers.new_zeros(len(parts.clips), *powers.shape[1:]).index_add(0, parts.owners, powers)
    real = frames < longest[:, None]
    summed = (sums.log() / scale.log_unit).masked_fill(~real[:, :, None], 0.0)
    mask = None if mask is None else mask.index_copy(0, parts.clips, real)
    return features.index_copy(0, parts.clips, summed), mask


def concatenate_clips(
    features: Tensor, mask: Tensor | None, partners: Partners, params: ConcatenationParams, scale: PowerScale | None
) -> tuple[Tensor, Tensor | None]:
    """Put each clip and the partners of its concatenation one after the other; return features and mask of all N clips.

    The order is random. With `whole` all frames of the clips follow one another; without, the clip's length is divided into
    as many equal parts, and each has an excerpt of one of them, or all of a clip that is shorter. Without `scale` (tokens)
    there are no gains.
    """
    parts = _find_parts(features, mask, partners, Use.CONCATENATE)
    if parts is None:
        return features, mask
    parts = parts.shuffled()
    counts = torch.bincount(parts.owners, minlength=len(parts.clips))
    first = (counts.cumsum(0) - counts)[parts.owners]  # of each clip's parts
    sizes = parts.lengths if params.whole else _excerpt_sizes(parts, counts, first, _lengths(features, mask))
    begin = _draw_begins(parts.lengths - sizes, random=params.random_start)
    ends = sizes.cumsum(0)
    totals = torch.zeros_like(parts.clips).index_add(0, parts.owners, sizes)
    longest = max(features.shape[1], int(totals.max()))
    steps = torch.arange(int(sizes.max()), device=features.device)
    inside = steps < sizes[:, None]
    taken = features[parts.rows[:, None].expand_as(inside)[inside], (begin[:, None] + steps)[inside]]
    if scale is not None:
        gains = _draw_gains(parts, params)[:, :, 0].expand_as(inside)[inside] / scale.log_unit
        taken = torch.where(gains[:, None] == 0, taken, (taken + gains[:, None]).clamp(min=scale.floor))
    joined = features.new_zeros(len(parts.clips), longest, features.shape[2])
    offsets = (ends - sizes) - (ends - sizes)[first]
    joined[parts.owners[:, None].expand_as(inside)[inside], (offsets[:, None] + steps)[inside]] = taken
    real = torch.arange(longest, device=features.device) < totals[:, None]
    before = longest - features.shape[1]
    if mask is None and before == 0 and bool(real.all()):
        return features.index_copy(0, parts.clips, joined), None
    mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device) if mask is None else mask
    features, mask = F.pad(features, (0, 0, 0, before)), F.pad(mask, (0, before))
    return features.index_copy(0, parts.clips, joined), mask.index_copy(0, parts.clips, real)


def mix_labels(targets: Tensor, partners: Partners, *, union: bool) -> Tensor:
    """Return the targets (N, K) after sums and concatenations: the union of those of all clips, or their mean.

    In a union, a class is unknown (NaN) where it is unknown in one clip and certain in none.
    """
    places = (partners.uses != Use.MIXUP).nonzero()[:, 0]
    if not len(places):
        return targets
    count = len(targets) - len(partners.owners)
    owners, others = partners.owners[places].to(targets.device), targets[count + places.to(targets.device)]
    if not union:
        shares = torch.ones(len(targets), 1, device=targets.device)
        shares.index_add_(0, owners, torch.ones(len(owners), 1, device=targets.device))
        return targets.index_add(0, owners, others) / shares
    index = owners[:, None].expand_as(others)
    highest = targets.nan_to_num(0).scatter_reduce(0, index, others.nan_to_num(0), "amax")
    unknown = targets.isnan().float().index_add(0, owners, others.isnan().float()) > 0
    return highest.masked_fill(unknown & (highest < 1), torch.nan)


class _Parts(NamedTuple):
    """Clips that become one, and what each is made of."""

    clips: Tensor  # (C,) rows of the clips of the batch that are replaced
    rows: Tensor  # (M,) rows of the parts, a clip itself and its partners
    owners: Tensor  # (M,) position in `clips` that a part belongs to
    lengths: Tensor  # (M,) frames of each part

    def shuffled(self) -> "_Parts":
        """Return the parts clip by clip, those of each in random order."""
        order = (self.owners.double() + torch.rand(len(self.rows), dtype=torch.float64).to(self.rows.device)).argsort()
        return _Parts(self.clips, self.rows[order], self.owners[order], self.lengths[order])


def _find_parts(features: Tensor, mask: Tensor | None, partners: Partners, use: Use) -> _Parts | None:
    """Return the parts of the clips with partners of a use; None where there are none."""
    places = (partners.uses == use).nonzero()[:, 0].to(features.device)
    if not len(places):
        return None
    owners = partners.owners.to(features.device)[places]
    clips = torch.unique(owners)
    rows = torch.cat([clips, len(features) - len(partners.owners) + places])
    positions = torch.cat([torch.arange(len(clips), device=features.device), torch.searchsorted(clips, owners)])
    return _Parts(clips, rows, positions, _lengths(features, mask)[rows])


def _lengths(features: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.full((len(features),), features.shape[1], device=features.device)
    return mask.sum(1)


def _excerpt_sizes(parts: _Parts, counts: Tensor, first: Tensor, lengths: Tensor) -> Tensor:
    """Return the frames of each part where a clip's own length is divided among its parts: (M,)."""
    rank = torch.arange(len(parts.rows), device=parts.rows.device) - first
    whole, count = lengths[parts.clips][parts.owners], counts[parts.owners]
    return torch.minimum(whole * (rank + 1) // count - whole * rank // count, parts.lengths)


def _draw_begins(slack: Tensor, *, random: bool) -> Tensor:
    """Draw where parts begin, from 0 to `slack` (M,); 0 unless `random`."""
    return (torch.rand(len(slack)).to(slack.device) * (slack + 1)).long() if random else torch.zeros_like(slack)


def _draw_gains(parts: _Parts, params: PartnersParams) -> Tensor:
    """Draw the gains of parts in ln(power), 0 for a clip itself: (M, 1, 1)."""
    gains = draw_uniform(params.gain, len(parts.rows)).to(parts.rows.device) * NEPERS
    return torch.where(parts.rows == parts.clips[parts.owners], 0.0, gains)[:, None, None]
