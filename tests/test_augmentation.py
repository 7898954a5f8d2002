"""What augmentation does to a batch, by cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from test_training import PLAIN

from pipeline.training.augmentation.masks import draw_spans, mask_features
from pipeline.training.augmentation.mixing import mix
from pipeline.training.augmentation.noise import add_noise
from pipeline.training.augmentation.settings import AugmentationParams, MasksParams
from pipeline.training.augmentation.time import warp_time
from pipeline.training.augmentation.tokens import mask_tokens, replace_tokens

POWER = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0, "mixup_domain": "power"})


def test_mixing_weights_spectrograms_and_targets_alike() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0})
    targets = torch.eye(6)
    spectrogram = targets[:, None, :].expand(6, 4, 6).clone()  # a clip looks like its own target
    mixed = mix(spectrogram, None, targets, params, None)
    torch.testing.assert_close(mixed.features[:, 0], mixed.targets)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(6))
    assert (mixed.targets.amax(1) < 1).any()


def test_a_mixture_is_as_long_as_its_longer_clip() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0})
    mask = torch.tensor([[True, True, True], [True, False, False]])
    mixed = mix(torch.zeros(2, 3, 1), mask, torch.eye(2), params, None)
    weights = mixed.targets.amax(1)
    assert mixed.mask is not None
    assert mixed.mask[1].all() or weights[1] == 1


@pytest.mark.parametrize("time_axis", [1, 2])
def test_time_shift_turns_a_clip_around_its_own_end(time_axis: int) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([10, 6])
    mask = torch.arange(10) < lengths[:, None]
    ramp = torch.where(mask, torch.arange(10).expand(2, -1), -1)
    inputs = ramp[:, :, None] if time_axis == 1 else ramp[:, None, :]
    params = AugmentationParams.model_validate(PLAIN | {"time_shift": 1.0})
    warped = warp_time(inputs, mask, params, time_axis).reshape(2, 10)
    assert (warped[1, 6:] == -1).all()
    for row, length in zip(warped, lengths.tolist(), strict=True):
        values = row[:length]
        assert sorted(values.tolist()) == list(range(length))
        assert ((values.roll(-1) - values) % length == 1).all()
    assert not torch.equal(warped, ramp)


def test_token_noise_stays_near_and_leaves_special_tokens_alone() -> None:
    torch.manual_seed(0)
    neighbours = torch.tensor([[[1], [0], [2], [3]], [[2], [2], [1], [3]]])  # tokens 0-2, padding 3
    tokens = torch.randint(0, 4, (30, 2, 40))
    noisy = replace_tokens(tokens, neighbours, 0.3)
    near = torch.stack([neighbours[book, tokens[:, book], 0] for book in range(2)], dim=1)
    assert ((noisy == tokens) | (noisy == near)).all()
    assert (noisy[tokens == 3] == 3).all()
    changed = (noisy != tokens)[near != tokens].float().mean()
    assert 0.25 < changed < 0.35
    assert torch.equal(replace_tokens(tokens, neighbours, 0.0), tokens)


def test_masked_tokens_become_the_mask_token_and_never_padding() -> None:
    torch.manual_seed(0)
    tokens = torch.zeros(50, 2, 20, dtype=torch.int64)
    mask = (torch.arange(20) < 15).expand(50, -1)
    masked = mask_tokens(tokens, mask, 99, MasksParams(count=2, width=6)) == 99
    assert masked.any()
    assert (masked[:, 0] == masked[:, 1]).all()  # a frame is masked in all codebooks
    assert not masked[:, :, 15:].any()
    assert masked.sum(2).max() <= 12


def test_spectrogram_masks_cover_whole_frames_and_bands() -> None:
    torch.manual_seed(0)
    spectrogram = mask_features(
        torch.ones(40, 12, 8), None, MasksParams(count=1, width=4), MasksParams(count=1, width=3)
    )
    for clip in spectrogram:
        frames, bands = (clip == 0).all(1), (clip == 0).all(0)
        assert ((clip == 0) == (frames[:, None] | bands[None, :])).all()
        assert frames.sum() <= 4
        assert bands.sum() <= 3


def test_powers_mix_as_the_powers_of_mixed_waveforms() -> None:
    """Two tones far apart have no cross terms: what the mixed waveform holds is what the mixed spectrogram shows."""
    torch.manual_seed(3)
    times = np.arange(4000) / 8000
    tones = [np.sin(2 * np.pi * frequency * times) for frequency in (500, 2000)]
    noise = 1e-3 * np.random.default_rng(0).standard_normal((2, 4000))
    mean, std = -3.0, 4.0

    def spectrogram(waveform: np.ndarray) -> torch.Tensor:
        power = np.abs(np.fft.rfft(waveform.reshape(-1, 400) * np.hanning(400))) ** 2  # (frame, bin)
        return torch.from_numpy((np.log(power) - mean) / std).float()

    clips = torch.stack([spectrogram(tone + hiss) for tone, hiss in zip(tones, noise, strict=True)])
    mixed = mix(clips, None, torch.eye(2), POWER, std)
    for clip, (first, second) in zip(mixed.features, mixed.targets.tolist(), strict=True):
        waveform = first * (tones[0] + noise[0]) + second * (tones[1] + noise[1])
        loud = spectrogram(waveform)[:, [25, 100]]  # the bins of the tones
        torch.testing.assert_close(clip[:, [25, 100]], loud, atol=0.02, rtol=0)
    assert not torch.allclose(mixed.targets, torch.eye(2))


def test_a_clip_that_has_ended_is_silent_in_a_mixture_of_powers() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    spectrograms = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 4, 2).masked_fill(~mask[:, :, None], 0.0)
    mixed = mix(spectrograms, mask, torch.eye(2), POWER, 2.0)
    assert mixed.mask is not None
    share = mixed.targets[0, 0].item()
    assert mixed.mask[0].tolist() == [True, True, False, False]
    assert not mixed.features[~mixed.mask].any()
    assert torch.isfinite(mixed.features).all()
    both = math.log(share**2 * math.exp(2) + (1 - share) ** 2 * math.exp(6)) / 2 if share < 1 else 1.0
    assert mixed.features[0, 0].tolist() == pytest.approx([both, both], rel=1e-4)
    assert mixed.features[0, 1, 0].item() == pytest.approx(1 + math.log(share))  # the second clip is over


def test_spectrograms_without_powers_are_mixed_as_they_are() -> None:
    plain = POWER.model_copy(update={"mixup_domain": "log"})
    spectrograms = torch.randn(3, 4, 2)
    for params, log_unit in ((POWER, None), (plain, 2.0)):
        torch.manual_seed(1)
        mixed = mix(spectrograms, None, torch.eye(3), params, log_unit)
        torch.testing.assert_close(mixed.features, torch.einsum("ab,btf->atf", mixed.targets, spectrograms))


def test_noise_is_uniform_and_of_another_strength_in_every_clip() -> None:
    torch.manual_seed(0)
    spectrogram = torch.zeros(50, 30, 20)
    noise = add_noise(spectrogram, 0.1)
    largest = noise.amax((1, 2))
    assert noise.min() >= 0
    assert largest.max() <= 0.1
    assert largest.max() > 2 * largest.min()
    torch.testing.assert_close(noise.mean((1, 2)), largest / 2, rtol=0.1, atol=0)
    assert add_noise(spectrogram, 0.0) is spectrogram


@pytest.mark.parametrize(("width", "length"), [(3, 8), (20, 5)])
def test_spans_have_all_widths_and_reach_both_ends(width: int, length: int) -> None:
    torch.manual_seed(0)
    spans = draw_spans(torch.full((2000, 1), length), length, MasksParams(count=1, width=width))
    assert set(spans.sum(1).tolist()) == set(range(min(width, length) + 1))
    assert spans[:, 0].any()
    assert spans[:, -1].any()
    edges = torch.nn.functional.pad(spans, (1, 1)).int().diff(dim=1)
    assert edges.abs().sum(1).max() == 2  # one span is in one piece


def test_spans_of_a_fraction_follow_the_length_of_each_clip() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([[10], [50], [100]]).repeat(1000, 1)
    spans = draw_spans(lengths, 100, MasksParams(count=1, width=0.2))
    for row, length in enumerate((10, 50, 100)):
        own = spans[row::3]
        assert set(own.sum(1).tolist()) == set(range(length // 5 + 1))
        assert own[:, 0].any()
        assert own[:, length - 1].any()
        assert not own[:, length:].any()


def test_a_mixture_is_masked_within_the_longer_of_its_clips() -> None:
    torch.manual_seed(0)
    mask = torch.arange(100) < torch.tensor([[10], [100]]).repeat(200, 1)
    masked = mask_features(
        torch.ones(400, 100, 8), mask, MasksParams(count=1, width=0.3), MasksParams(count=0, width=0)
    )
    hidden = (masked == 0).all(2)
    assert hidden[0::2].sum(1).max() == 3
    assert hidden[1::2].sum(1).max() == 30
    assert not hidden[0::2, 10:].any()


def test_a_stretch_reads_faster_or_slower_by_what_it_says() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"time_stretch": 0.2})
    ramp = torch.arange(1000).expand(400, -1)[:, :, None]
    last = warp_time(ramp, None, params, 1)[:, 800, 0] / 800
    assert math.exp(-0.2) - 0.01 < last.min() < 0.84
    assert 1.17 < last.max() < math.exp(0.2)
    assert 0.4 < (last < 1).float().mean() < 0.6


def test_a_shift_is_at_most_its_part_of_the_clip_either_way() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"time_shift": 0.25})
    lengths = torch.tensor([100, 40]).repeat(500)
    mask = torch.arange(100) < lengths[:, None]
    first = warp_time(torch.arange(100).expand(1000, -1)[:, :, None], mask, params, 1)[:, 0, 0]
    shift = torch.where(first > lengths / 2, first - lengths, first)
    for length, largest in ((100, 25), (40, 10)):
        own = shift[lengths == length]
        assert -largest <= own.min() < 0.9 * -largest + 1
        assert 0.9 * largest - 1 < own.max() <= largest


def test_as_many_clips_are_mixed_as_asked_for() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 0.3})
    targets = torch.eye(2000)
    mixed = mix(torch.zeros(2000, 1, 1), None, targets, params, None)
    assert 0.25 < (mixed.targets != targets).any(1).float().mean() < 0.35


def test_what_is_off_changes_nothing_and_draws_no_numbers() -> None:
    """Or turning one kind on and off again would change the draws of all others."""
    plain, mixing = (AugmentationParams.model_validate(PLAIN | {"mixup_probability": p}) for p in (0.0, 1.0))
    features, tokens, targets = torch.randn(3, 5, 2), torch.zeros(3, 1, 5, dtype=torch.int64), torch.eye(3)
    state = torch.get_rng_state()
    assert warp_time(features, None, plain, 1) is features
    assert replace_tokens(tokens, torch.zeros(1, 2, 1, dtype=torch.int64), 0.0) is tokens
    assert mix(features, None, targets, plain, None).features is features
    assert mix(features[:1], None, targets[:1], mixing, None).targets.tolist() == [[1, 0, 0]]
    assert add_noise(features, 0.0) is features
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_of_clips_that_are_all_as_long_and_of_bands_alone() -> None:
    torch.manual_seed(0)
    hidden = mask_tokens(torch.zeros(50, 1, 20, dtype=torch.int64), None, 9, MasksParams(count=1, width=6))
    assert hidden[:, :, -1].any()
    bands = mask_features(torch.ones(40, 12, 8), None, None, MasksParams(count=1, width=3))
    assert (bands == bands[:, :1]).all()
    assert (bands == 0).any()


@pytest.mark.parametrize("alpha", [0.5, 10.0])
def test_weights_of_mixtures_are_those_of_a_beta_distribution(alpha: float) -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 1.0, "mixup_alpha": alpha})
    weight = mix(torch.zeros(4000, 1, 1), None, torch.eye(4000), params, None).targets.diagonal()
    assert 0 <= weight.min() < weight.max() <= 1
    assert weight.mean().item() == pytest.approx(0.5, abs=0.02)
    assert weight.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_a_clip_that_is_not_mixed_keeps_its_length() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 0.5})
    mask = torch.arange(4) < torch.tensor([1, 4]).repeat(50)[:, None]
    mixed = mix(torch.zeros(100, 4, 1), mask, torch.eye(100), params, None)
    alone = mixed.targets.diagonal() == 1
    assert mixed.mask is not None
    assert 20 < alone.sum() < 80
    assert torch.equal(mixed.mask[alone], mask[alone])
    assert (mixed.mask & mask).equal(mask)


def test_a_clip_that_is_not_mixed_knows_its_labels_beside_clips_that_do_not() -> None:
    torch.manual_seed(0)
    params = AugmentationParams.model_validate(PLAIN | {"mixup_probability": 0.5})
    targets = torch.eye(100)
    targets[::2, 7] = torch.nan
    mixed = mix(torch.zeros(100, 4, 1), None, targets, params, None)
    alone = mixed.targets.nan_to_num(0).diagonal() == 1
    assert 20 < alone.sum() < 80
    assert torch.equal(mixed.targets[alone].isnan(), targets[alone].isnan())
