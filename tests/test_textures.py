"""Texture statistics know modulation, period and correlation, not moments; and the classifiers on them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from test_baselines import FRONT_END, one_hot
from test_kinds import make_params
from test_rebuilding import fit as fit_tokens

from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.models.baselines import kernel_classifier, textures
from pipeline.models.baselines.base import Setting
from pipeline.models.baselines.texture_inputs import TokensParams
from pipeline.models.baselines.texture_statistics import (
    COARSE,
    PERIODS,
    QUANTILES,
    RATES,
    CopiesParams,
    augmented_copies,
    extract_features,
    mixture,
)
from pipeline.models.baselines.textures import TextureStatistics, TextureStatisticsParams
from pipeline.params import validate_params
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.rebuilding import rebuild
from tools.compose import compose, dump

RATE = 100.0
NUM_MELS = 64
COPIES = CopiesParams(cut=0.2, speed=0.1, bands=2, gain=1.5, tilt=2.0)
SECTION: dict[str, Any] = {
    "kind": "texture_statistics",
    "input": {"kind": "frames"},
    "floor": 0.1,
    "augmented_copies": COPIES.model_dump(),
    "mixtures": 1,
    "mixture_gain": 2.0,
    "ridge": 0.01,
    "kernel_width": 0.25,
}


def make_model(**changes: Any) -> TextureStatistics:
    return TextureStatistics(validate_params(TextureStatisticsParams, SECTION | changes, "models.tested"))


FRAMES, TOKENS = make_model(), make_model(input={"kind": "tokens"})


def noise(length: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (length, NUM_MELS)).astype(np.float32)


def parts(frames: np.ndarray, floor: float = -10.0) -> dict[str, np.ndarray]:
    """Return the statistics of a clip by name."""
    values, found = extract_features(frames, floor=floor, frame_rate=RATE), {}
    ranges = sum(low < RATE / 2 for low in RATES[:-1])
    for name, *shape in (
        ("quantiles", len(QUANTILES), 32),
        ("modulation", ranges, COARSE),
        ("change", 3, COARSE),
        ("cepstrum", 2, 30),
        ("correlations", COARSE * (COARSE - 1) // 2),
        ("periodicity", len(PERIODS) - 1, 5),
    ):
        found[name], values = np.split(values, [int(np.prod(shape))])
        found[name] = found[name].reshape(shape)
    assert not values.size
    return found


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100, 1500])
def test_a_clip_of_any_length_has_the_same_statistics(length: int) -> None:
    values = extract_features(noise(length), floor=-1.0, frame_rate=RATE)
    assert values.shape == extract_features(noise(), floor=-1.0, frame_rate=RATE).shape
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.isfinite(extract_features(np.zeros((length, NUM_MELS), np.float32), floor=-1.0, frame_rate=RATE)).all()


@pytest.mark.parametrize("num_mels", [1, 20, 40, 128])
@pytest.mark.parametrize("frame_rate", [10.0, 50.0, 86.1])
def test_any_front_end_has_statistics(num_mels: int, frame_rate: float) -> None:
    frames = noise(300)[:, :1].repeat(num_mels, axis=1)
    assert np.isfinite(extract_features(frames, floor=-1.0, frame_rate=frame_rate)).all()


def test_they_do_not_know_when_anything_happened() -> None:
    quiet = np.full((500, NUM_MELS), -5.0, np.float32)
    early, late = quiet.copy(), quiet.copy()
    early[50:100], late[350:400] = noise(50), noise(50)
    np.testing.assert_allclose(*(extract_features(x, floor=-5.0, frame_rate=RATE) for x in (early, late)), atol=0.1)


@pytest.mark.parametrize(("hertz", "place"), [(0.6, 0), (1.5, 1), (3, 2), (5, 3), (12, 4), (20, 5), (40, 6)])
def test_modulation_is_where_it_was_put(hertz: float, place: int) -> None:
    time = np.arange(500) / RATE
    frames = 0.1 * noise() + np.sin(2 * np.pi * hertz * time)[:, None].astype(np.float32)
    assert set(parts(frames)["modulation"].argmax(axis=0)) == {place}


@pytest.mark.parametrize(("period", "place"), [(5, 0), (20, 2), (40, 3), (80, 4), (150, 5)])
def test_recurring_onsets_have_their_period(period: int, place: int) -> None:
    frames = np.full((500, NUM_MELS), -5.0, np.float32)
    frames[::period] = 0.0
    found = parts(frames)["periodicity"][:, 0]
    assert found[place] > 0.6
    assert (found[:place] < 0.2).all()  # later ones hold multiples
    assert (parts(noise())["periodicity"][1:, 0] < 0.4).all()


def test_bands_that_vary_together_correlate() -> None:
    frames = noise()
    frames[:, NUM_MELS // 2 :] = frames[:, : NUM_MELS // 2]
    matrix = np.zeros((COARSE, COARSE))
    matrix[np.triu_indices(COARSE, 1)] = parts(frames)["correlations"]
    same = np.eye(COARSE, k=COARSE // 2).astype(bool)
    assert (matrix[same] > 0.8).all()
    assert (np.abs(matrix[~same]) < 0.3).all()


def test_what_is_below_the_floor_is_not_heard() -> None:
    quiet, quieter = noise() - 20, 3 * noise(seed=1) - 30
    np.testing.assert_array_equal(*(extract_features(x, floor=-10.0, frame_rate=RATE) for x in (quiet, quieter)))


def test_augmented_copies() -> None:
    frames = noise(100)
    found = list(augmented_copies(frames, COPIES))
    lengths = [100, 80, 80, 80, 90, 100, 100, 100, 111, 100, 100, 100]
    assert [len(copy) for copy in found] == lengths
    assert len(found) == COPIES.count
    np.testing.assert_array_equal(found[0], frames)
    np.testing.assert_array_equal(found[2], frames[10:90])
    np.testing.assert_array_equal(found[5][:, 2:], frames[:, :-2])  # each band hears the one two below
    np.testing.assert_allclose(found[6] + 1.5, frames, atol=1e-5)
    np.testing.assert_allclose((found[7] - frames)[0, [0, -1]], [2.0, -2.0], atol=1e-5)
    assert (found[8][1:].std(axis=1) > 0).all()  # slower: frames are repeated, none is made up
    assert {tuple(row) for row in found[8]} == {tuple(row) for row in frames}
    nothing = CopiesParams(cut=0, speed=0, bands=0, gain=0, tilt=0)
    assert len(list(augmented_copies(frames, nothing))) == nothing.count == 1


@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_shortest_clips_have_copies(length: int) -> None:
    found = list(augmented_copies(noise(length), COPIES))
    assert len(found) == COPIES.count
    for copy in found:
        assert copy.shape[1] == NUM_MELS
        assert np.isfinite(extract_features(copy, floor=0.0, frame_rate=RATE)).all()


def test_a_mixture_adds_powers() -> None:
    generator = np.random.default_rng(0)
    frames, silence = noise(100), np.full((40, NUM_MELS), -50.0, np.float32)
    loudness = mixture(frames, silence, generator, gain=2.0) - frames + np.log(2)
    assert np.ptp(loudness) < 1e-4
    assert 0 < abs(loudness[0, 0]) <= 2
    np.testing.assert_allclose(
        mixture(frames, frames[:1], generator, gain=0.0), _mean_power(frames, frames[0]), atol=1e-5
    )
    assert mixture(frames, np.empty((0, NUM_MELS), np.float32), generator, gain=0.0) == pytest.approx(frames, abs=1e-5)


def _mean_power(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.log((np.exp(one) + np.exp(other)) / 2)
    return mean


def tremolos(classes: np.ndarray) -> list[np.ndarray]:
    """Return clips of one average spectrum: classes differ in how fast their level goes up and down alone."""
    generator = np.random.default_rng(len(classes))
    clips = []
    for c in classes:
        time = np.arange(int(generator.integers(250, 350))) / RATE + generator.random()
        level = np.sin(2 * np.pi * (2.5, 6.0, 14.0)[c] * time)
        clips.append((generator.normal(0, 0.5, (len(time), NUM_MELS)) + level[:, None]).astype(np.float32))
    return clips


@pytest.mark.parametrize("kind", ["one", "many"])
def test_models_know_textures(kind: Any) -> None:
    train, test = np.arange(24) % 3, np.arange(15) % 3
    weights = FRAMES.fit(tremolos(train), one_hot(train), Setting({}, FRONT_END, kind, 0))
    assert {values.dtype for values in weights.values()} == {np.dtype(np.float32)}
    logits = FRAMES.predict(weights, tremolos(test))
    assert logits.dtype == np.float32
    assert ((logits > 0) == (one_hot(test) > 0)).all()


def test_units_make_no_difference() -> None:
    classes = np.arange(6) % 3
    clips = tremolos(classes)
    to_decibels = np.float32(10 / np.log(10))
    decibels = [clip * to_decibels for clip in clips]
    logits = [
        FRAMES.predict(FRAMES.fit(x, one_hot(classes), setting), x)
        for x, setting in (
            (clips, Setting({}, FRONT_END, "one", 0)),
            (decibels, Setting({}, FRONT_END | {"units": "dB"}, "one", 0)),
        )
    ]
    np.testing.assert_allclose(*logits, atol=1e-2)


def test_the_seed_draws_mixtures_and_nothing_else() -> None:
    classes = np.arange(6) % 3
    clips = tremolos(classes)

    def fitted(seed: int, model: TextureStatistics = FRAMES) -> np.ndarray:
        return model.fit(clips, one_hot(classes), Setting({}, FRONT_END, "one", seed))["mean"]

    first = fitted(0)
    np.testing.assert_array_equal(first, fitted(0))
    assert (first != fitted(1)).any()
    unmixed = make_model(mixtures=0)
    np.testing.assert_array_equal(fitted(0, unmixed), fitted(1, unmixed))


def test_mixtures_are_of_clips_with_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = np.arange(12) % 3
    clips = [np.full((20, NUM_MELS), 10.0 * c, np.float32) + noise(20) for c in classes]
    seen = []

    def spy(frames: np.ndarray, other: np.ndarray, *rest: Any, **options: Any) -> np.ndarray:
        seen.append((frames.mean() // 5, other.mean() // 5))
        return mixture(frames, other, *rest, **options)

    monkeypatch.setattr(textures, "mixture", spy)
    FRAMES.fit(clips, one_hot(classes), Setting({}, FRONT_END, "one", 0))
    assert len(seen) == 12
    assert all(one == other for one, other in seen)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "bands", "bands": 4},
        {"kind": "residual", "codebooks": 2},
        {"kind": "soft_kmeans", "nearest": 2},
        {"kind": "random_projection", "codebooks": 2, "stack": 2},
        {"stack": 3, "deltas": 1},
        {"stack": 2, "pca": 5},
        {"normalisation": "l2", "stack": 2},
    ],
    ids=str,
)
def test_tokens_have_the_textures_of_what_they_stand_for(changes: dict[str, Any]) -> None:
    vocabulary = fit_tokens(make_frames(600), num_tokens=16, **changes)
    clips = [make_frames(50 + number, seed=number) for number in range(9)]
    tokens = assign(vocabulary, clips)
    classes = np.arange(9) % 3
    setting = Setting({}, FRONT_END, "one", 0, vocabulary)

    ours = TOKENS.predict(TOKENS.fit(tokens, one_hot(classes), setting), tokens)

    rebuilt = [rebuild(vocabulary, clip) for clip in tokens]
    theirs = FRAMES.fit(rebuilt, one_hot(classes), setting)
    np.testing.assert_allclose(ours, FRAMES.predict(theirs, rebuilt), atol=1e-3)


def test_more_clips_than_there_is_room_for_are_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(textures, "extract_features", None)
    monkeypatch.setattr(kernel_classifier, "MOST_ROWS", 25_000)
    clips, targets = [noise(2)] * 2000, one_hot(np.arange(2000) % 3)
    with pytest.raises(ParamsError, match=r"25,000 rows .*, found 26,000 of 2,000 .*, 13 of each.*; leave augm"):
        FRAMES.fit(clips, targets, Setting({}, FRONT_END, "one", 0))


@pytest.mark.parametrize(
    ("experiment", "change", "found"),
    [
        ("kmeans", "vocabularies.kmeans.bpe={num_tokens: 600}", "merged tokens"),
        ("bands", "vocabularies.bands.normalisation=l2", "kind bands with l2 and 8 codebooks"),
    ],
)
def test_such_tokens_are_refused_before_they_are_learned(
    tmp_path: Path, experiment: str, change: str, found: str
) -> None:
    changes = [f"experiment.vocabularies=[{experiment}]", "experiment.ensembles=[]", "report.headline=[ast]", change]
    document, _ = compose("leaderboard", changes, REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError) as caught:
        load_experiment(tmp_path / "params.yaml")
    expected = (
        rf"experiment.vocabularies: token_textures cannot read {experiment}: .*, found {found}; remove one of the two"
    )
    assert re.search(expected, str(caught.value))


def test_a_kind_whose_codes_do_not_add_up_is_refused_before_it_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(kind="random_projection", codebooks=1)
    TokensParams(kind="tokens").require_vocabulary(params)
    monkeypatch.setattr(type(params), "additive", False)
    with pytest.raises(ValueError, match="found kind random_projection, whose codes do not add up"):
        TokensParams(kind="tokens").require_vocabulary(params)


@pytest.mark.parametrize("additive", [True, False])
def test_tokens_whose_frames_are_no_sums_are_refused_by_name(additive: bool) -> None:
    changes = {"kind": "residual", "codebooks": 2, "normalisation": "l2"} if additive else {}
    vocabulary = fit_tokens(make_frames(600), num_tokens=16, **changes)
    vocabulary = replace(vocabulary, metadata=vocabulary.metadata | {"additive": additive})
    tokens = assign(vocabulary, [make_frames(50)])
    with pytest.raises(
        ParamsError, match=r"texture_statistics: expected a vocabulary of plain tokens.*experiment\.vocab"
    ):
        TOKENS.fit(tokens, one_hot(np.zeros(1, int)), Setting({}, FRONT_END, "one", 0, vocabulary))


def make_frames(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-6, 3, (length, 8)).astype(np.float32)
