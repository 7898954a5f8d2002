"""Augmentation of a batch: all its parts in order, between the stored clips and the network's stem.

In order: reversal, time shift and stretch, token noise and token masking; on log-mel frames pitch, bands and levels, then
sounds that are added; on the feature map sums and concatenations of clips, mix-up, Freq-MixStyle, masks, erasing and noise.
Partners of mixtures (`pipeline/training/augmentation/partners.py`) are changed as the clips themselves, up to the mixture.

Of a model that reads tokens, the stored tokens are changed so, and then their feature map. With `retokenize` batches hold
frames, and everything up to Freq-MixStyle acts on them, in the front end's units; the result is assigned to the vocabulary,
and its tokens take token noise and token masks, and their feature map the rest.

Everything is vectorised over the batch. Numbers are drawn from torch's global generator on the CPU, seeded per epoch, and
moved to the device. Changes of powers need log-mel frames with the same normalisation in all clips; tokens, and other
frames, go through the rest.

Conventions: B clips of a batch, P partners; N = B + P, T frame, F feature, K class.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pipeline.models.network import Network
from pipeline.models.parts import Input
from pipeline.training.augmentation.masks import erase, mask_features
from pipeline.training.augmentation.mixing import Mixed, concatenate_clips, mix, mix_labels, sum_clips
from pipeline.training.augmentation.mixstyle import mix_styles
from pipeline.training.augmentation.noise import NoiseBanks, add_noise, add_sounds
from pipeline.training.augmentation.partners import Partners
from pipeline.training.augmentation.power import PowerScale, change_spectrum
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.augmentation.time import reverse, warp_time
from pipeline.training.augmentation.tokens import mask_tokens, replace_tokens
from pipeline.training.batches import Batch

log = logging.getLogger(__name__)

TOKEN_AXIS = 2  # that a batch of tokens (B, codebook, T) has time along

_OF_ANY_FRAMES = ("copies", "freq_mixstyle")  # whose meaning does not depend on powers


class FrameTokenizer(Protocol):
    """Interface to the vocabulary that augmented frames are assigned to; see `retokenizing.py`."""

    def fill(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Set padding to the mean frame, as which mix-up of logarithms takes a clip beyond its end."""

    def assign(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of each clip, with the padding token behind them, and their mask."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of the batches of a run."""

    params: AugmentationParams
    time_axis: int  # of a batch's inputs
    scale: PowerScale | None  # None = values that are no log powers: tokens, or frames with a normalisation by clip
    banks: NoiseBanks
    tokenizer: FrameTokenizer | None = None  # of frames, for a model that reads tokens; None = inputs are what it reads

    def warn_without_effect(self) -> None:
        """Log a warning for settings that this model's input does not take."""
        if self.scale is not None:
            return
        for name in self.params.used_of_frames:
            if name not in _OF_ANY_FRAMES:
                log.warning(
                    "train.augmentation.%s: expected a model that reads frames with the same normalisation in all clips, or "
                    "tokens of log-mel frames while retokenize is true, found another: no effect",
                    name,
                )
            elif self.time_axis == TOKEN_AXIS:
                log.warning(
                    "train.augmentation.%s: expected a model that reads frames, or tokens while retokenize is true, found "
                    "tokens: no effect",
                    name,
                )

    def apply(
        self, model: Network, batch: Batch, targets: Tensor, smooth: Callable[[Tensor], Tensor], *, union: bool
    ) -> Mixed:
        """Return feature map (B, T, F), mask and targets (B, K) of a batch; `targets` (N, K) are those of its partners too.

        `smooth` smooths targets, after labels are united and before mix-up. `union`: clips that become one have the labels
        of all, else equal shares of them.
        """
        inputs, mask = self.change_time(batch.inputs, batch.mask), batch.mask
        if batch.partners is not None:
            targets = mix_labels(targets, batch.partners, union=union)
        if self.tokenizer is None:
            features = self.change_sound(model.embed(self.change_tokens(model.input, inputs, mask)), mask)
            mixed = self.combine(Mixed(features, mask, smooth(targets)), batch.partners)
        else:
            frames = self.combine(Mixed(self.change_sound(inputs, mask), mask, smooth(targets)), batch.partners)
            mixed = self._embed_anew(model, self.tokenizer, frames)
        if not model.supports_masking:
            return mixed._replace(features=add_noise(mixed.features, self.params.noise))
        frames_too = model.input.mask_token is None
        return self.hide(mixed, frames_too=frames_too, num_channels=model.input.num_channels)

    def _embed_anew(self, model: Network, tokenizer: FrameTokenizer, mixed: Mixed) -> Mixed:
        """Return the feature map of mixed frames, by way of their tokens."""
        frames = mixed.features
        if model.supports_masking:
            frames = mix_styles(frames, mixed.mask, self.params.freq_mixstyle)
        tokens, mask = tokenizer.assign(frames, mixed.mask)
        return Mixed(model.embed(self.change_tokens(model.input, tokens, mask)), mask, mixed.targets)

    def change_tokens(self, reader: Input, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Replace and mask tokens; inputs that are no tokens stay."""
        if reader.mask_token is None:
            return inputs
        tokens = replace_tokens(inputs, reader.neighbours, self.params.token_noise)
        return mask_tokens(tokens, mask, reader.mask_token, self.params.frame_masks)

    def change_time(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Reverse, shift and stretch clips."""
        inputs = reverse(inputs, mask, self.params.reversal, self.time_axis)
        return warp_time(inputs, mask, self.params, self.time_axis)

    def change_sound(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Change pitch, bands and levels of clips (N, T, F), and add sounds."""
        scale, params, banks = self.scale, self.params, self.banks
        if scale is None:
            return features
        features = change_spectrum(features, mask, params, scale)
        for bank, part in ((banks.background, params.background), (banks.coloured, params.coloured_noise)):
            features = add_sounds(features, mask, bank, part.probability, part.snr, scale)
        return features

    def combine(self, clips: Mixed, partners: Partners | None) -> Mixed:
        """Return the B clips of a batch, mixed with their partners, which are the last of N clips, or with one another."""
        features, mask, targets = clips
        if partners is not None:
            if self.scale is not None:
                features, mask = sum_clips(features, mask, partners, self.params.sum_clips, self.scale)
            features, mask = concatenate_clips(features, mask, partners, self.params.concatenate_clips, self.scale)
        log_unit = None if self.scale is None else self.scale.log_unit
        mixed = mix(self._fill(features, mask), mask, targets, self.params, log_unit, partners)
        if self._fills and mixed.mask is not None:
            mixed = mixed._replace(features=mixed.features.masked_fill(~mixed.mask[:, :, None], 0.0))
        return mixed if partners is None else _trim(mixed)

    @property
    def _fills(self) -> bool:
        """Whether padding, which is 0, is not the mean frame of a network that reads frames."""
        return self.tokenizer is None and self.scale is not None and self.scale.typical != 0

    def _fill(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Set padding to the mean frame, as which mix-up of logarithms takes a clip beyond its end."""
        if self.tokenizer is not None:
            return self.tokenizer.fill(features, mask)
        if mask is None or self.scale is None or not self._fills:
            return features
        return features.masked_fill(~mask[:, :, None], self.scale.typical)

    def hide(self, mixed: Mixed, *, frames_too: bool, num_channels: int = 1) -> Mixed:
        """Change styles, mask and add noise to mixed clips; without `frames_too` (tokens) styles and frames stay.

        Styles of frames that became tokens were changed before, and those of frames decoded from tokens stay.
        """
        params, features = self.params, mixed.features
        if frames_too and self.tokenizer is None and self.time_axis != TOKEN_AXIS:
            features = mix_styles(features, mixed.mask, params.freq_mixstyle)
        frame_masks = params.frame_masks if frames_too else None
        features = mask_features(features, mixed.mask, frame_masks, params.band_masks, num_channels)
        features = erase(features, mixed.mask, params.erasing, num_channels)
        return mixed._replace(features=add_noise(features, params.noise))


def _trim(mixed: Mixed) -> Mixed:
    """Return the clips without frames in which all are padding, as only partners reached there."""
    if mixed.mask is None:
        return mixed
    longest = int(mixed.mask.sum(1).max())
    mask = mixed.mask[:, :longest]
    return Mixed(mixed.features[:, :longest], None if bool(mask.all()) else mask, mixed.targets)
