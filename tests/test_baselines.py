"""The baselines learn what can be learnt, and say in NumPy what scikit-learn says."""

from typing import Any, get_args

import numpy as np
import pytest
from scipy.special import log_expit, log_softmax
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from pipeline.errors import ParamsError
from pipeline.models.baselines import kernel_classifier, rbf_kernel
from pipeline.models.baselines.bag_of_tokens import BagOfTokens, BagOfTokensParams
from pipeline.models.baselines.base import Baseline, LazyClips, Setting, Weights
from pipeline.models.baselines.calibration import halves
from pipeline.models.baselines.frame_statistics import FrameStatistics, FrameStatisticsParams, extract_features
from pipeline.models.baselines.kernel_classifier import (
    Solver,
    fit_one_vs_rest,
    least_squares,
    require_room,
    score,
    support_vectors,
)
from pipeline.models.baselines.majority import Majority, MajorityParams
from pipeline.models.baselines.ngram import NgramClassifier, NgramParams
from pipeline.models.registry import BASELINES

BAG_PARAMS = BagOfTokensParams(kind="bag_of_tokens", sublinear=True, regularisation=10.0, iterations=1000)
BAG = BagOfTokens(BAG_PARAMS)
STATISTICS = FrameStatistics(FrameStatisticsParams(kind="frame_statistics", penalty=10.0, kernel_width=1.0))
METADATA: dict[str, Any] = {"vocabulary_size": 12, "num_codebooks": 2, "n_mels": 4}
FRONT_END: dict[str, Any] = {"units": "ln(power)", "frame_rate": 100.0}
NGRAM = NgramClassifier(NgramParams(kind="ngram", order=2))
CASES = [BAG, STATISTICS, NGRAM]
NUM_CLASSES = 3
SOLVERS = [support_vectors(10.0), least_squares(0.1)]


def make_inputs(model: Baseline, classes: np.ndarray) -> list[np.ndarray]:
    """Return clips of 20 to 30 frames, each class with tokens (or a level) of its own."""
    generator = np.random.default_rng(len(classes))
    clips = []
    for c in classes:
        num_frames = int(generator.integers(20, 30))
        if model.reads == "tokens":
            clips.append(generator.integers(3 * c, 3 * c + 6, (2, num_frames)).astype(np.uint16))
        else:
            clips.append(generator.normal(3.0 * c, 2, (num_frames, 4)).astype(np.float32))
    return clips


def fit(model: Baseline, inputs: list[np.ndarray], targets: np.ndarray, kind: Any = "one") -> Weights:
    return model.fit(inputs, targets, Setting(METADATA, FRONT_END, kind, 0))  # type: ignore[arg-type]


def test_classical_models_are_of_the_base_class_and_say_what_they_take() -> None:
    for kind, model in BASELINES.items():
        assert issubclass(model, Baseline)
        assert get_args(model.Params.model_fields["kind"].annotation) == (kind,)


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(NUM_CLASSES, dtype=np.float32)[classes]


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("kind", ["one", "many"])
def test_separable_classes_are_learnt(model: Baseline, kind: str) -> None:
    train, test = np.arange(60) % 3, np.arange(30) % 3
    weights = fit(model, make_inputs(model, train), one_hot(train), kind)
    assert {values.dtype for values in weights.values() if values.dtype.kind == "f"} == {np.dtype(np.float32)}
    logits = model.predict(weights, make_inputs(model, test))
    assert logits.shape == (30, NUM_CLASSES)
    assert logits.dtype == np.float32
    assert (logits.argmax(axis=1) == test).all()


@pytest.mark.parametrize("sublinear", [True, False])
def test_bag_of_tokens_says_what_scikit_learn_says(sublinear: bool) -> None:
    classes = np.arange(60) % 3
    inputs = make_inputs(BAG, classes)
    model = BagOfTokens(BAG_PARAMS.model_copy(update={"sublinear": sublinear}))
    logits = model.predict(fit(model, inputs, one_hot(classes)), inputs)
    counts = np.stack([np.concatenate([np.bincount(tokens, minlength=12) for tokens in clip]) for clip in inputs])
    features = TfidfTransformer(sublinear_tf=sublinear).fit_transform(counts)
    expected = LogisticRegression(C=10.0, max_iter=1000).fit(features, classes).decision_function(features)
    assert np.allclose(logits, expected, atol=2e-3)


def test_frame_statistics_say_what_scikit_learn_says() -> None:
    classes = np.arange(60) % 3
    inputs = make_inputs(STATISTICS, classes)
    logits = STATISTICS.predict(fit(STATISTICS, inputs, one_hot(classes)), inputs)
    features = extract_features(inputs)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    machines = [SVC(C=10.0, gamma="auto").fit(features, classes == number) for number in range(NUM_CLASSES)]
    margins = np.stack([machine.decision_function(features) for machine in machines], axis=1)
    scale = np.abs(logits).max() / np.abs(margins).max()  # one for all
    assert np.allclose(logits / scale, margins, atol=2e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["one", "many"])
def test_kernel_classifiers_are_as_sure_as_they_may_be(kind: Any, solver: Solver) -> None:
    generator = np.random.default_rng(0)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        classes = generator.integers(0, NUM_CLASSES, count)
        return classes, generator.normal(0, 1, (count, 5)) + 1.2 * np.eye(NUM_CLASSES, 5)[classes]

    classes, features = drawn(300)
    weights = fit_one_vs_rest(
        features, np.arange(300), one_hot(classes), solver, kernel_width=1.0, label_kind=kind, seed=0
    )
    test, unseen = drawn(2000)
    logits = score(weights, unseen, kernel_width=1.0).astype(np.float64)

    def loss(factor: float) -> float:
        if kind == "one":
            return -float(log_softmax(factor * logits, axis=1)[np.arange(2000), test].mean())
        return -float(log_expit(np.where(one_hot(test) > 0.5, factor, -factor) * logits).mean())

    assert loss(1.0) < min(loss(0.5), loss(2.0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_of_a_clip_are_judged_by_those_of_others(solver: Solver) -> None:
    classes = np.random.default_rng(0).integers(0, NUM_CLASSES, 60)  # of noise, so that no other clip helps
    features = np.random.default_rng(1).normal(0, 1, (60, 20)).repeat(5, axis=0)
    clips = np.arange(60).repeat(5)
    weights = fit_one_vs_rest(features, clips, one_hot(classes), solver, kernel_width=1.0, label_kind="one", seed=0)
    logits = score(weights, features[::5], kernel_width=1.0)
    assert (logits.argmax(axis=1) == classes).mean() > 0.9  # learnt by heart
    assert np.ptp(logits) < 1.0  # and not sure of it


@pytest.mark.parametrize("num_clips", [1, 2, 15, 16, 17, 100, 1603])
def test_calibration_fits_on_one_half_and_judges_the_other(num_clips: int) -> None:
    (fitted, judged), again = halves(num_clips)
    assert sorted([*fitted, *judged]) == list(range(num_clips))
    assert abs(len(fitted) - len(judged)) <= -(-num_clips // 16)
    assert [again[0].tolist(), again[1].tolist()] == [judged.tolist(), fitted.tolist()]


@pytest.mark.parametrize("clips_per_recording", [3, 5, 8])
def test_recordings_stay_in_one_half_of_calibration(clips_per_recording: int) -> None:
    """Clips of a recording are neighbours: of 16 runs of clips, each begins within one recording at most."""
    recordings = np.arange(400) // clips_per_recording
    (fitted, judged), _ = halves(400)
    assert len(np.intersect1d(recordings[fitted], recordings[judged])) <= 15
    half = np.isin(np.arange(400), judged)
    assert (half[1:] != half[:-1]).sum() == 15  # of runs that alternate, so that classes in order are in both halves
    assert set(np.diff(np.flatnonzero(np.diff(half, prepend=~half[:1])))) == {25}


@pytest.mark.parametrize("solver", SOLVERS)
def test_neighbours_that_sound_alike_make_no_classifier_sure(solver: Solver) -> None:
    """Takes of one recording, whose class is noise: each is known by heart from the other takes, which lie in its half."""
    classes = np.random.default_rng(0).integers(0, NUM_CLASSES, 64).repeat(10)
    features = np.random.default_rng(1).normal(0, 1, (64, 20)).repeat(10, axis=0)
    features += np.random.default_rng(2).normal(0, 0.05, features.shape)
    weights = fit_one_vs_rest(
        features, np.arange(640), one_hot(classes), solver, kernel_width=1.0, label_kind="one", seed=0
    )
    logits = score(weights, features, kernel_width=1.0)
    assert (logits.argmax(axis=1) == classes).mean() > 0.9
    assert np.ptp(logits) < 1.0


def test_least_squares_are_those_of_scikit_learn() -> None:
    classes = np.arange(30) % 3
    features = np.random.default_rng(0).normal(0, 1, (30, 4)) + classes[:, None]
    solver = least_squares(0.1)
    weights = fit_one_vs_rest(
        features, np.arange(30), one_hot(classes), solver, kernel_width=2.0, label_kind="one", seed=0
    )
    logits = score(weights, features, kernel_width=2.0)
    rows = (features - features.mean(axis=0)) / features.std(axis=0)
    values = 2 * one_hot(classes) - 1
    machine = KernelRidge(alpha=0.1, kernel="rbf", gamma=0.5).fit(rows, values - values.mean(axis=0))
    margins = machine.predict(rows) + values.mean(axis=0)
    assert np.allclose(logits * np.abs(margins).max() / np.abs(logits).max(), margins, atol=2e-3)


@pytest.mark.parametrize("basis_rows", [None, 300, 40], ids=["float32", "all rows", "a basis"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_many_rows_have_the_logits_of_least_squares_on_few(
    solver: Solver, basis_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the solver, with its own ridge; in float32, on a basis of all rows, and nearly so on some."""
    generator = np.random.default_rng(0)
    classes = generator.integers(0, NUM_CLASSES, 300)
    features = generator.normal(0, 1, (300, 3)) + 2 * np.eye(3)[classes]

    def fit(used: Solver) -> np.ndarray:
        arguments: dict[str, Any] = {"kernel_width": 0.5, "label_kind": "one", "seed": 0}
        weights = fit_one_vs_rest(features, np.arange(300), one_hot(classes), used, **arguments)
        assert len(weights["support"]) == len(weights["dual"].T) == (basis_rows or 300 if used is solver else 300)
        return score(weights, features, kernel_width=0.5)

    exact = fit(least_squares(solver.ridge))
    monkeypatch.setattr(kernel_classifier, "MOST_EXACT_ROWS", 299)
    monkeypatch.setattr(rbf_kernel, "ROWS_PER_BLOCK", 64)
    if basis_rows is not None:
        monkeypatch.setattr(kernel_classifier, "MOST_FLOAT32_ROWS", 299)
        monkeypatch.setattr(kernel_classifier, "BASIS_ROWS", basis_rows)
    found = fit(solver)
    np.testing.assert_allclose(found, exact, atol=2e-3 * np.abs(exact).max() if basis_rows != 40 else 0.5)
    assert (found.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.97


def test_a_ridge_that_rounding_would_drown_is_solved_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_classifier, "MOST_EXACT_ROWS", 0)
    monkeypatch.setattr(kernel_classifier, "solve_in_float32", None)
    classes = np.arange(60) % 3
    features = np.random.default_rng(0).normal(0, 1, (60, 4)).repeat(2, axis=0)  # every row twice
    clips, solver = np.arange(60).repeat(2), least_squares(1e-7)
    weights = fit_one_vs_rest(features, clips, one_hot(classes), solver, kernel_width=1.0, label_kind="one", seed=0)
    assert (score(weights, features[::2], kernel_width=1.0).argmax(axis=1) == classes).all()


@pytest.mark.parametrize(("num_clips", "rows"), [(66_667, 15), (1_000_001, 1)])
def test_rows_that_outgrow_the_memory_are_refused(num_clips: int, rows: int) -> None:
    require_room(1_000_000 // rows, rows, "here")
    with pytest.raises(ParamsError, match=f"here: expected at most 1,000,000 rows .* of {num_clips:,} training clips"):
        require_room(num_clips, rows, "here")


def test_clips_that_are_taken_when_they_are_used() -> None:
    taken: list[int] = []
    clips = LazyClips(5, lambda number: taken.append(number) or np.full(2, number))  # type: ignore[func-returns-value]
    assert len(clips) == 5
    assert not taken
    assert [int(clip[0]) for clip in clips] == [0, 1, 2, 3, 4] == taken
    assert [int(clip[0]) for clip in clips[3:0:-2]] == [3, 1]
    assert int(clips[-1][0]) == 4


def test_statistics_by_hand() -> None:
    frames = np.array([[0.0, 1], [2, 1], [4, 1]], np.float32)
    deviation = np.sqrt(8 / 3)
    assert np.allclose(extract_features([frames])[0], [2, 1, deviation, 0, 4, 1, 2, 0])
    assert np.isfinite(extract_features([frames[:1]])).all()


@pytest.mark.parametrize("model", CASES)
def test_many_labels_are_told_apart(model: Baseline) -> None:
    classes = np.arange(60) % 3
    targets = np.stack([classes == 0, classes >= 1, classes == 2], axis=1).astype(np.float32)
    inputs = make_inputs(model, classes)
    logits = model.predict(fit(model, inputs, targets, "many"), inputs)
    assert ((logits > 0) == (targets > 0.5)).all()


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("kind", ["one", "many"])
@pytest.mark.parametrize("seen", [[0, 2], [1]])
def test_a_class_absent_in_training_is_never_predicted(model: Baseline, kind: str, seen: list[int]) -> None:
    classes = np.resize(seen, 20)
    inputs = make_inputs(model, classes)
    logits = model.predict(fit(model, inputs, one_hot(classes), kind), inputs)
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=1) == classes).all()
    assert (logits[:, np.setdiff1d(np.arange(3), seen)] < -10).all()


@pytest.mark.parametrize("model", [BAG, NGRAM])
def test_an_empty_clip_has_finite_logits(model: Baseline) -> None:
    classes = np.arange(12) % 3
    weights = fit(model, make_inputs(model, classes), one_hot(classes))
    assert np.isfinite(model.predict(weights, [np.empty((2, 0), np.uint16)])).all()


def make_cycles(classes: np.ndarray) -> list[np.ndarray]:
    """Return clips that hold every token equally often: classes differ in what follows what alone."""
    generator = np.random.default_rng(len(classes))
    steps = np.array([1, 5, 7])  # all prime to 12
    return [((steps[c] * np.arange(48) + generator.integers(0, 12, (2, 1))) % 12).astype(np.uint16) for c in classes]


@pytest.mark.parametrize("kind", ["one", "many"])
def test_ngrams_know_the_order_that_a_bag_does_not(kind: str) -> None:
    train, test = np.arange(24) % 3, np.arange(15) % 3
    for model in (NGRAM, NgramClassifier(NgramParams(kind="ngram", order=1)), BAG):
        weights = fit(model, make_cycles(train), one_hot(train), kind)
        right = (model.predict(weights, make_cycles(test)).argmax(axis=1) == test).mean()
        assert right == 1 if model is NGRAM else right < 0.8


def test_ngrams_are_no_surer_than_they_may_be() -> None:
    """Of clips that sound like another class now and then: the scale that was fitted makes test labels likeliest."""
    classes = np.arange(300) % 3
    generator = np.random.default_rng(0)
    tokens = np.where(generator.random(300) < 0.4, generator.integers(0, 3, 300), classes)
    clips = make_inputs(NGRAM, tokens)
    weights = fit(NGRAM, clips[:200], one_hot(classes[:200]))

    def loss(scale: float) -> float:
        changed = weights | {"scale": np.array([scale], np.float32)}
        logits = NGRAM.predict(changed, clips[200:]).astype(np.float64)
        return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(100), classes[200:]]).mean())

    fitted = float(weights["scale"][0])
    assert 1 < fitted < 40
    assert loss(fitted) < min(loss(fitted / 4), loss(4 * fitted), loss(2 * 25))  # the last: the sum over all tokens


@pytest.mark.parametrize("kind", ["one", "many"])
def test_the_majority_says_how_common_classes_are_whatever_it_hears(kind: str) -> None:
    classes = np.array([0] * 5 + [1] * 3)
    model = Majority(MajorityParams(kind="majority"))
    logits = model.predict(fit(model, [], one_hot(classes), kind), make_inputs(model, classes[:2]))
    assert (logits == logits[0]).all()
    odds = np.exp(logits[0])
    shares = odds / odds.sum() if kind == "one" else odds / (1 + odds)
    np.testing.assert_allclose(shares, np.array([5.5, 3.5, 0.5]) / (9.5 if kind == "one" else 9), rtol=1e-5)
