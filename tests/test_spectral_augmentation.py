"""Augmentation of single clips: reversal, pitch, bands, levels, styles and erasing, by cases whose answer is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_training import PLAIN

from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.spectrogram.band_scale import band_centres, band_positions
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.training.augmentation.masks import erase
from pipeline.training.augmentation.mixstyle import mix_styles
from pipeline.training.augmentation.power import NEPERS, PowerScale, change_spectrum, read_bands
from pipeline.training.augmentation.settings import AugmentationParams, ErasingParams, MixStyleParams
from pipeline.training.augmentation.time import reverse

FRONT_END = KaldiFrontEnd(
    KaldiParams(
        kind="kaldi", sample_rate=16000, win_length=400, hop_length=160, n_fft=512, n_mels=64, f_min=20.0, f_max=8000.0,
        pre_emphasis=0.0,
    )
)  # fmt: skip
METADATA: SpectrogramMetadata = {**FRONT_END.metadata, "dtype": "float32", "scale": 1.0, "offset": 0.0}
SCALE = PowerScale(METADATA, 1.0, mean=-5.0, size=4.0)


def params(**parts: dict[str, Any]) -> AugmentationParams:
    """Return settings with these parts on, for every clip."""
    return AugmentationParams.model_validate(
        PLAIN | {name: PLAIN[name] | {"probability": 1.0} | part for name, part in parts.items()}
    )


def tone(hertz: float, gain: float = 1.0) -> torch.Tensor:
    """Return normalised frames (1, frame, mel) of half a second of a tone over a little noise."""
    times = np.arange(8000) / 16000
    noise = 1e-4 * np.random.default_rng(0).standard_normal(8000)
    waveform = gain * (0.3 * np.sin(2 * np.pi * hertz * times) + noise)
    return SCALE.normalise(torch.from_numpy(FRONT_END.log_mel(waveform.astype(np.float32))))[None]


@pytest.mark.parametrize("time_axis", [1, 2])
def test_reversal_is_that_of_the_real_frames(time_axis: int) -> None:
    torch.manual_seed(0)
    lengths = [10, 6, 10]
    mask = torch.arange(10) < torch.tensor(lengths)[:, None]
    inputs = torch.randint(0, 99, (3, 10, 4) if time_axis == 1 else (3, 4, 10))
    found = reverse(inputs, mask, 1.0, time_axis)
    for before, after, length in zip(inputs, found, lengths, strict=True):
        if time_axis == 2:
            before, after = before.T, after.T
        np.testing.assert_array_equal(after[:length].numpy(), before[:length].numpy()[::-1])
        assert torch.equal(after[length:], before[length:])
    some = reverse(inputs.repeat(100, 1, 1), None, 0.3, time_axis)
    assert 0.2 < (some != inputs.repeat(100, 1, 1)).flatten(1).any(1).float().mean() < 0.4


def test_a_gain_is_that_of_the_waveform() -> None:
    found = change_spectrum(tone(1000.0), None, params(gain={"range": [6.0, 6.0]}), SCALE)
    louder = tone(1000.0, gain=10 ** (6 / 20))
    sounding = louder > SCALE.floor + 1  # float32 rounds what is near the floor
    torch.testing.assert_close(found[sounding], louder[sounding], atol=2e-3, rtol=0)
    quiet = change_spectrum(tone(1000.0), None, params(gain={"range": [-200.0, -200.0]}), SCALE)
    assert (quiet == np.float32(SCALE.floor)).all()


@pytest.mark.parametrize("semitones", [-5.0, 3.0])
def test_a_change_of_pitch_moves_a_tone_to_its_multiple(semitones: float) -> None:
    found = change_spectrum(tone(1000.0), None, params(pitch={"range": [semitones, semitones]}), SCALE)
    other = tone(1000.0 * 2 ** (semitones / 12))
    assert torch.equal(found.argmax(2), other.argmax(2))
    assert (found.amax(2) - other.amax(2)).abs().max() < 0.15


def test_speed_changes_pitch_and_tempo() -> None:
    clip = torch.cat([tone(500.0), tone(2000.0)], dim=1)
    found = change_spectrum(clip, None, params(speed={"range": [1.25, 1.25]}), SCALE)
    bands = band_positions(METADATA, [500 * 1.25, 2000 * 1.25]).round()
    half = clip.shape[1] // 2
    turn = int(half / 1.25)
    assert (found[0, 2 : turn - 2].argmax(1) - bands[0]).abs().max() <= 1
    assert (found[0, turn + 2 : 2 * turn - 2].argmax(1) - bands[1]).abs().max() <= 1
    assert found.shape == clip.shape


def test_bands_move_by_whole_bands_and_leave_the_floor() -> None:
    clip = torch.randn(1, 5, 64)
    up = change_spectrum(clip, None, params(band_shift={"range": [3.0, 3.0]}), SCALE)
    assert torch.equal(up[:, :, 3:], clip[:, :, :-3])
    assert (up[:, :, :3] == np.float32(SCALE.floor)).all()
    between = read_bands(torch.arange(4.0)[None, None], torch.tensor([[0.5, 1.25, 3.0, 9.0]]), -9.0)
    assert between.flatten().tolist() == [0.5, 1.25, 3.0, -9.0]


def test_a_tilt_is_in_decibels_per_octave() -> None:
    clip = torch.zeros(1, 3, 64)
    found = change_spectrum(clip, None, params(tilt={"range": [2.0, 2.0]}), SCALE)[0, 0] * SCALE.log_unit / NEPERS
    places = np.arange(64)
    below, at, above = (np.interp(band_positions(METADATA, [hertz])[0], places, found) for hertz in (500, 1000, 4000))
    assert [below, at, above] == pytest.approx([-2, 0, 4], abs=0.05)
    assert band_positions(METADATA, band_centres(METADATA).tolist()) == pytest.approx(places, abs=1e-2)


def test_an_equaliser_is_smooth_and_within_its_range() -> None:
    torch.manual_seed(0)
    part = {"equaliser": {"range": [-6.0, 3.0], "bands": 4}}
    found = change_spectrum(torch.zeros(200, 2, 64), None, params(**part), SCALE) * SCALE.log_unit / NEPERS
    assert -6 <= found.min() < -5.5
    assert 2.5 < found.max() <= 3
    knots = found[:, 0, [0, 21, 42, 63]]
    middle = found[:, 0, 10:12].mean(1)  # between the first two
    torch.testing.assert_close(middle, knots[:, 0] + 0.5 * (knots[:, 1] - knots[:, 0]), atol=0.02, rtol=0)


def test_every_clip_has_a_number_of_its_own_and_padding_stays() -> None:
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.tensor([[6], [4]]).repeat(100, 1)
    clips = torch.ones(200, 6, 64).masked_fill(~mask[:, :, None], 0.0)
    found = change_spectrum(clips, mask, params(gain={"probability": 0.5, "range": [-6.0, 6.0]}), SCALE)
    assert not found[~mask].any()
    changed = found[:, 0, 0] != 1
    assert 0.4 < changed.float().mean() < 0.6
    assert len(found[changed, 0, 0].unique()) == changed.sum()
    assert torch.equal(found[~changed], clips[~changed])


def test_styles_are_those_of_another_clip() -> None:
    torch.manual_seed(0)
    mask = torch.arange(40) < torch.tensor([[40], [25]])
    scales = torch.tensor([[1.0, 5.0], [2.0, 0.5]])[:, None]
    clips = (torch.randn(2, 40, 2) * scales + torch.tensor([[0.0, 3.0], [4.0, -2.0]])[:, None]).masked_fill(
        ~mask[:, :, None], 0.0
    )
    means = torch.stack([clip[real].mean(0) for clip, real in zip(clips, mask, strict=True)])
    for _ in range(20):
        found = mix_styles(clips, mask, MixStyleParams(probability=1.0, alpha=0.4))
        assert not found[~mask].any()
        for row in range(2):
            mean = found[row][mask[row]].mean(0)
            weight = (mean - means[1 - row]) / (means[row] - means[1 - row])
            assert weight[0].item() == pytest.approx(weight[1].item(), abs=1e-4)
            assert -1e-4 <= weight[0] <= 1 + 1e-4


def test_erased_rectangles_have_the_area_and_aspect_of_their_range() -> None:
    torch.manual_seed(0)
    mask = torch.arange(200) < torch.tensor([[200], [100]]).repeat(100, 1)
    clips = torch.ones(200, 200, 100)
    found = erase(clips, mask, ErasingParams(probability=1.0, area=[0.04, 0.16], aspect=[0.5, 2.0])) == 0
    for hidden, length in zip(found, mask.sum(1).tolist(), strict=True):
        frames, bands = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, frames[:, None] & bands)
        assert not frames[length:].any()
        sides = frames.sum().item() / length, bands.sum().item() / 100
        assert 0.03 < sides[0] * sides[1] < 0.18
        assert 0.45 < sides[0] / sides[1] < 2.2
    half = erase(clips, None, ErasingParams(probability=0.5, area=[1.0, 1.0], aspect=[1.0, 1.0]))
    assert 0.35 < (half == 0).all((1, 2)).float().mean() < 0.65


def test_augmentation_at_probability_0_is_the_identity_and_draws_nothing() -> None:
    plain = AugmentationParams.model_validate(PLAIN)
    clips = torch.randn(3, 5, 64)
    state = torch.get_rng_state()
    assert change_spectrum(clips, None, plain, SCALE) is clips
    assert reverse(clips, None, 0.0, 1) is clips
    assert mix_styles(clips, None, plain.freq_mixstyle) is clips
    assert erase(clips, None, plain.erasing) is clips
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scale_knows_the_floor() -> None:
    assert SCALE.floor == pytest.approx((math.log(np.finfo(np.float32).eps) + 5) / 4)
    assert SCALE.log_unit == 4
