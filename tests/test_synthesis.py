"""Tests of the demo corpus: its folds and groups, and that order in time tells a pair apart."""

import numpy as np
import pytest

from pipeline.corpora.synthesis import (
    CLASSES,
    NUM_FOLDS,
    DemoClip,
    demo_clips,
    dry_waveform,
    synthesise,
)

SAMPLE_RATE = 16000  # Hz
FRAME = 400  # samples
SEED = 7


def power_spectra(waveform: np.ndarray) -> np.ndarray:
    """Return the power spectra of disjoint windowed frames, (frame, bin)."""
    frames = waveform[: waveform.size // FRAME * FRAME].reshape(-1, FRAME)
    return np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2


def trend(clip: DemoClip, quantity: str) -> float:
    """Return the correlation of `quantity` with time inside a phrase, averaged over the clip."""
    dry = dry_waveform(clip, duration=2.0, sample_rate=SAMPLE_RATE, seed=SEED)
    spectra = power_spectra(dry)
    power = spectra.sum(axis=1)
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    # A phrase is a run of frames without a silence of more than 70 ms.
    active = np.flatnonzero(power > 1e-5 * power.max())
    trends = []
    for phrase in np.split(active, np.flatnonzero(np.diff(active) > 3) + 1):
        if phrase.size < 5:
            continue
        centroid = spectra[phrase] @ frequencies / power[phrase]
        values = {"centroid": centroid, "level": np.log(power[phrase])}[quantity]
        trends.append(np.corrcoef(phrase, values)[0, 1])
    return float(np.mean(trends))


def test_classes_are_ten_distinct_names():
    assert len(set(CLASSES)) == len(CLASSES) == 10


def test_folds_follow_the_number_of_the_clip():
    clips = demo_clips(40, SEED)

    assert len({clip.clip_id for clip in clips}) == len(clips) == 400
    for clip in clips:
        class_name, number = clip.clip_id.rsplit("-", 1)
        assert CLASSES[clip.class_index] == class_name
        assert clip.fold == 1 + int(number) % NUM_FOLDS


def test_no_group_straddles_folds_or_classes():
    groups: dict[str, list[DemoClip]] = {}
    for clip in demo_clips(40, SEED):
        groups.setdefault(clip.group, []).append(clip)

    for members in groups.values():
        assert len({(clip.fold, clip.class_index) for clip in members}) == 1
        assert len(members) <= 4
    assert max(len(members) for members in groups.values()) > 1


def test_a_longer_corpus_begins_every_class_with_the_clips_of_a_shorter_one():
    assert set(demo_clips(7, SEED)) < set(demo_clips(40, SEED))


@pytest.mark.parametrize("class_index", range(len(CLASSES)))
@pytest.mark.parametrize("duration", [0.5, 3.0])
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_every_duration_and_rate_gives_a_sounding_waveform(class_index, duration, sample_rate):
    clip = demo_clips(1, SEED)[class_index]

    waveform = synthesise(clip, duration=duration, sample_rate=sample_rate, seed=SEED)

    assert waveform.shape == (round(duration * sample_rate),)
    assert waveform.dtype == np.float32
    assert np.isfinite(waveform).all()
    assert 0.3 < np.abs(waveform).max() <= 1.0


def test_a_clip_does_not_depend_on_what_was_made_before():
    clips = demo_clips(2, SEED)
    options = {"duration": 0.5, "sample_rate": SAMPLE_RATE, "seed": SEED}

    forwards = [synthesise(clip, **options) for clip in clips]
    backwards = [synthesise(clip, **options) for clip in reversed(clips)][::-1]

    np.testing.assert_array_equal(forwards, backwards)


def test_seed_and_number_change_the_clip():
    first, second = demo_clips(2, SEED)[:2]
    waveforms = [
        synthesise(clip, duration=0.5, sample_rate=SAMPLE_RATE, seed=seed)
        for clip, seed in ((first, SEED), (second, SEED), (first, SEED + 1))
    ]

    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(waveforms[one], waveforms[other])[0, 1]) < 0.5


@pytest.mark.parametrize("clip", demo_clips(1, SEED)[::2], ids=lambda clip: clip.clip_id)
def test_the_second_class_of_a_pair_is_the_first_played_backwards(clip):
    options = {"duration": 2.0, "sample_rate": SAMPLE_RATE, "seed": SEED}

    forwards = dry_waveform(clip, **options)
    backwards = dry_waveform(clip._replace(class_index=clip.class_index + 1), **options)

    np.testing.assert_array_equal(backwards, forwards[::-1])


@pytest.mark.parametrize(
    ("class_name", "quantity", "sign"),
    [
        ("rising_sweep", "centroid", 1),
        ("falling_sweep", "centroid", -1),
        ("low_high_call", "centroid", 1),
        ("high_low_call", "centroid", -1),
        ("hum_then_hiss", "centroid", 1),
        ("hiss_then_hum", "centroid", -1),
        ("swelling_noise", "level", 1),
        ("fading_noise", "level", -1),
    ],
)
def test_a_class_sounds_like_its_name(class_name, quantity, sign):
    clips = [clip for clip in demo_clips(10, SEED) if CLASSES[clip.class_index] == class_name]

    assert all(sign * trend(clip, quantity) > 0.3 for clip in clips)


@pytest.mark.parametrize(
    ("class_name", "sign"),
    [("accelerating_clicks", 1), ("slowing_clicks", -1)],
)
def test_clicks_are_denser_and_fainter_on_the_named_side(class_name, sign):
    for clip in demo_clips(10, SEED):
        if CLASSES[clip.class_index] == class_name:
            dry = dry_waveform(clip, duration=2.0, sample_rate=SAMPLE_RATE, seed=SEED)
            loud = np.abs(dry) > 1e-4 * np.abs(dry).max()
            # More than 5 ms of silence lies between two clicks, and over 100 ms between two trains.
            silences = np.diff(np.flatnonzero(loud))
            between = silences[(silences > 0.005 * SAMPLE_RATE) & (silences < 0.1 * SAMPLE_RATE)]
            borders = np.flatnonzero(silences > 0.005 * SAMPLE_RATE) + 1
            clicks = np.split(np.flatnonzero(loud), borders)
            peaks = np.array([np.abs(dry[click]).max() for click in clicks])
            assert sign * np.sign(np.diff(between)).sum() < 0
            assert sign * np.sign(np.diff(peaks)).sum() < 0


@pytest.mark.parametrize("clip", demo_clips(2, SEED), ids=lambda clip: clip.clip_id)
@pytest.mark.parametrize("duration", [0.5, 2.0])
def test_sounds_keep_clear_of_the_ends_of_the_clip(clip, duration):
    dry = dry_waveform(clip, duration=duration, sample_rate=SAMPLE_RATE, seed=SEED)

    margin = round(0.02 * duration * SAMPLE_RATE)
    assert not dry[:margin].any()
    assert not dry[-margin:].any()
