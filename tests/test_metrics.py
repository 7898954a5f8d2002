"""Metrics against hand-computed cases, limits, and scikit-learn."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.calibration import measure_reliability
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.evaluation.metric_definition import primary_metric, secondary_metric
from pipeline.evaluation.metric_functions import (
    average_precision,
    confusion_matrix,
    d_prime,
    roc_auc,
    to_scores,
    validate,
)
from pipeline.evaluation.metrics import evaluate, evaluate_scores
from pipeline.evaluation.ranking_curves import GRID, ranking_curves
from pipeline.evaluation.reported import several_labels
from pipeline.evaluation.reported.standard import METRICS
from pipeline.execution.code import EVERY_KIND, project_sources, reach
from pipeline.reporting.several_labels import count_confusions, count_scores

SHARE = {"one": "accuracy", "many": "exact_match"}  # of clips that are right throughout

GOLDEN = Path(__file__).parent / "data" / "metrics.json"  # written by running this file as a script


def one_hot(classes: list[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[classes]


def random_case(
    seed: int, *, num_clips: int = 200, num_classes: int = 7, levels: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (clip, class) with many ties, and independent 0-1 targets."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (num_clips, num_classes)) / (levels - 1)
    return scores, (generator.random((num_clips, num_classes)) < 0.2).astype(np.float32)


def test_average_precision_by_hand() -> None:
    # Ranked: positive, negative, positive, negative -> (1/1 + 2/3) / 2.
    values = average_precision([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]])
    assert values == pytest.approx([5 / 6], abs=1e-15)


def test_roc_auc_by_hand() -> None:
    # Of the four pairs (positive, negative), 0.9 beats both, 0.7 beats one.
    assert roc_auc([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]]) == pytest.approx([0.75], abs=1e-15)


def test_equal_scores_are_chance_in_any_order() -> None:
    targets = np.array([[1], [0], [0], [1], [0]])
    scores = np.full((5, 1), 0.3)
    assert roc_auc(scores, targets) == pytest.approx([0.5], abs=1e-15)
    assert average_precision(scores, targets) == pytest.approx([2 / 5], abs=1e-15)
    assert average_precision(scores, targets[::-1]) == pytest.approx([2 / 5], abs=1e-15)


def test_metrics_do_not_depend_on_the_order_of_clips() -> None:
    scores, targets = random_case(1)
    order = np.random.default_rng(0).permutation(len(scores))
    for metric in (average_precision, roc_auc):
        np.testing.assert_allclose(metric(scores, targets), metric(scores[order], targets[order]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_perfect_predictions_score_one(label_kind) -> None:
    targets = one_hot([0, 1, 2, 0, 1, 2], 3)
    scores = evaluate(20 * (targets - 0.5), targets, label_kind)
    for name in (SHARE[label_kind], "mAP", "AUC", "macro_f1", "micro_f1", "macro_recall"):
        assert scores.values[name] == pytest.approx(1, abs=1e-12), name
    assert scores.values["d_prime"] == math.inf
    assert (scores.num_clips, scores.num_classes, scores.num_present_classes, scores.num_ranked_classes) == (6, 3, 3, 3)


def test_reversed_predictions_have_auc_zero() -> None:
    targets = one_hot([0, 1, 0, 1], 2)
    scores = evaluate(-20 * (targets - 0.5), targets, "one")
    assert (scores.values["accuracy"], scores.values["AUC"], scores.values["d_prime"]) == (0.0, 0.0, -math.inf)


def test_chance_predictions_sit_at_chance() -> None:
    generator = np.random.default_rng(0)
    targets = one_hot(generator.integers(0, 10, 20_000).tolist(), 10)
    scores = evaluate(generator.normal(size=targets.shape), targets, "one")
    assert scores.values["accuracy"] == pytest.approx(0.1, abs=0.01)
    assert scores.values["mAP"] == pytest.approx(0.1, abs=0.01)
    assert scores.values["AUC"] == pytest.approx(0.5, abs=0.01)
    assert scores.values["d_prime"] == pytest.approx(0, abs=0.03)


def test_an_absent_class_is_counted_and_left_out_of_the_means() -> None:
    targets = one_hot([0, 1, 0, 1], 3)  # class 2 has no positive
    scores = evaluate(20 * (targets - 0.5), targets, "one")
    assert (scores.num_classes, scores.num_present_classes, scores.num_ranked_classes) == (3, 2, 2)
    absent = scores.classes[2]
    assert absent.num_positives == 0
    assert all(
        math.isnan(v) for v in (absent.average_precision, absent.auc, absent.precision, absent.recall, absent.f1)
    )
    assert scores.values["mAP"] == scores.values["macro_f1"] == 1.0


def test_a_class_of_positives_alone_has_precision_but_no_auc() -> None:
    scores = evaluate([[3.0], [-3.0]], [[1], [1]], "many")
    assert (scores.num_present_classes, scores.num_ranked_classes) == (1, 0)
    assert scores.values["mAP"] == 1.0
    assert math.isnan(scores.values["AUC"])
    assert math.isnan(scores.values["d_prime"])


def test_no_positive_at_all_never_crashes() -> None:
    scores = evaluate(np.zeros((3, 2)), np.zeros((3, 2)), "many")
    assert scores.num_present_classes == 0
    assert math.isnan(scores.values["mAP"])


def test_precision_recall_f1_by_hand() -> None:
    # Decided 0 0 1 1 for actual 0 1 1 1: precision 1/2 and 2/2, recall 1/1 and 2/3, F1 2/3 and 4/5.
    scores = evaluate([[2, 0], [2, 0], [0, 2], [0, 2]], one_hot([0, 1, 1, 1], 2), "one")
    assert scores.values["accuracy"] == scores.values["micro_f1"] == 0.75
    assert scores.values["macro_precision"] == pytest.approx(3 / 4)
    assert scores.values["macro_recall"] == pytest.approx(5 / 6)
    assert scores.values["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores.confusion is not None
    assert scores.confusion.tolist() == [[1, 0], [1, 2]]


def test_many_labels_are_decided_from_one_half_on() -> None:
    # Logit 0 is score 0.5: decided. Rows: right, one false positive -> half of the clips are right as a whole.
    scores = evaluate([[0.0, -1.0], [1.0, 1.0]], [[1, 0], [1, 0]], "many")
    assert scores.values["exact_match"] == 0.5
    assert scores.values["micro_f1"] == pytest.approx(4 / 5)
    assert scores.confusion is None


def test_several_labels_are_decided_by_the_threshold_of_each() -> None:
    scores, targets = np.array([[0.3, 0.6], [0.1, 0.9]]), np.array([[1, 0], [0, 1]])
    assert evaluate_scores(scores, targets, "many").values["exact_match"] == 0.5
    assert evaluate_scores(scores, targets, "many", np.array([0.3, 0.7])).values["exact_match"] == 1.0
    assert evaluate_scores(scores, targets, "many", 0.3).values["exact_match"] == 0.5


def test_metrics_of_a_clips_labels_by_hand() -> None:
    # Decided and actual labels of three clips: {0, 1} of {0}, {} of {}, {2} of {0, 2}.
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.1, 0.3], [0.2, 0.3, 0.6]])
    values = evaluate_scores(scores, [[1, 0, 0], [0, 0, 0], [1, 0, 1]], "many").values
    assert values["hamming_score"] == pytest.approx((2 + 3 + 2) / 9)
    assert values["all_zeros_hamming_score"] == pytest.approx((2 + 3 + 1) / 9)
    assert values["exact_match"] == pytest.approx(1 / 3)
    assert values["sample_f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    # The second clip has no label to rank; the third has its labels in places 1 and 3.
    assert values["label_ranking_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert values["coverage"] == pytest.approx((1 + 3) / 2)


def test_several_labels_have_no_accuracy_and_one_label_no_hamming_score() -> None:
    scores, targets = random_case(4)
    assert math.isnan(evaluate_scores(scores, targets, "many").values["accuracy"])
    one = evaluate_scores(scores, one_hot([number % 7 for number in range(200)], 7), "one").values
    assert all(math.isnan(one[metric.name]) for metric in several_labels.METRICS)


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_the_primary_metric_follows_the_label_kind(label_kind: LabelKind) -> None:
    assert primary_metric(label_kind).name == {"one": "accuracy", "many": "mAP"}[label_kind]
    for metric in (primary_metric(label_kind), secondary_metric(label_kind)):
        assert label_kind in metric.label_kinds
        assert label_kind in metric.headline
        assert metric.percent  # figures draw it in percent


def test_calibration_errors_by_hand() -> None:
    # Two likeliest classes of 0.9 and 0.8, one of them right, in one bin each.
    one = measure_reliability(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[True, False], [True, False]]), "one")
    assert one.error == pytest.approx((0.1 + 0.8) / 2)
    many = measure_reliability(np.array([[0.98, np.nan], [0.97, 0.0]]), np.array([[True, False]] * 2), "many")
    assert many.counts.tolist() == [1, *[0] * 13, 2]
    assert many.error == pytest.approx((2 * 0.025 + 0) / 3)
    assert math.isnan(measure_reliability(np.full((2, 1), np.nan), np.zeros((2, 1), bool), "many").error)


def test_calibrated_probabilities_have_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((20_000, 5))
    targets = generator.random(scores.shape) < scores
    assert evaluate_scores(scores, targets, "many").values["label_calibration_error"] < 0.01
    assert evaluate_scores(scores**2, targets, "many").values["label_calibration_error"] > 0.1


def test_a_class_never_decided_has_precision_zero() -> None:
    scores = evaluate([[5.0, 0.0]] * 3, one_hot([0, 0, 1], 2), "one")
    assert (scores.classes[1].precision, scores.classes[1].recall, scores.classes[1].f1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets = random_case(seed, num_classes=70)  # more than one block of classes
    result = evaluate_scores(scores, targets, "many")
    for position, found in enumerate(result.classes):
        column = (targets[:, position], scores[:, position])
        assert found.average_precision == pytest.approx(metrics.average_precision_score(*column), abs=1e-12)
        assert found.auc == pytest.approx(metrics.roc_auc_score(*column), abs=1e-12)
    expected = metrics.precision_recall_fscore_support(targets, scores >= 0.5, average="macro", zero_division=0)
    found_values = [result.values[f"macro_{name}"] for name in ("precision", "recall", "f1")]
    assert found_values == pytest.approx(expected[:3], abs=1e-12)
    micro = metrics.f1_score(targets, scores >= 0.5, average="micro", zero_division=0)
    assert result.values["micro_f1"] == pytest.approx(micro, abs=1e-12)
    assert result.values["exact_match"] == pytest.approx(metrics.accuracy_score(targets, scores >= 0.5), abs=1e-12)
    assert result.values["hamming_score"] == pytest.approx(1 - metrics.hamming_loss(targets, scores >= 0.5), abs=1e-12)
    zeros = metrics.hamming_loss(targets, np.zeros_like(targets))
    assert result.values["all_zeros_hamming_score"] == pytest.approx(1 - zeros, abs=1e-12)
    by_clip = metrics.f1_score(targets, scores >= 0.5, average="samples", zero_division=1.0)
    assert result.values["sample_f1"] == pytest.approx(by_clip, abs=1e-12)
    labelled = targets.any(axis=1)
    for name, function in (
        ("label_ranking_average_precision", metrics.label_ranking_average_precision_score),
        ("coverage", metrics.coverage_error),
    ):
        assert result.values[name] == pytest.approx(function(targets[labelled], scores[labelled]), abs=1e-12), name


def test_one_of_many_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    actual = generator.integers(0, 6, 300)
    logits = generator.normal(size=(300, 6)) + 1.5 * one_hot(actual.tolist(), 6)
    result = evaluate(logits, one_hot(actual.tolist(), 6), "one")
    decided = logits.argmax(axis=1)
    assert result.values["accuracy"] == pytest.approx(metrics.accuracy_score(actual, decided), abs=1e-12)
    assert result.values["macro_f1"] == pytest.approx(metrics.f1_score(actual, decided, average="macro"), abs=1e-12)
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(actual, decided))
    assert result.values["AUC"] == pytest.approx(
        metrics.roc_auc_score(actual, to_scores(logits, "softmax"), multi_class="ovr"), abs=1e-12
    )


def test_curves_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, targets = random_case(6, levels=40)
    targets[:, 5] = 0
    roc, precision = ranking_curves(*validate(scores, targets))
    for position in range(5):
        column = (targets[:, position], scores[:, position])
        false, true, _ = metrics.roc_curve(*column, drop_intermediate=False)
        np.testing.assert_allclose(roc[position], np.interp(GRID, false, true))
        found, recall, _ = metrics.precision_recall_curve(*column)
        # From the first threshold whose recall is enough, the highest one; scikit-learn lists the lowest first.
        expected = [found[:-1][recall[:-1] >= point][-1] for point in GRID]
        np.testing.assert_allclose(precision[position], expected)
    assert np.isnan(roc[5]).all()
    assert np.isnan(precision[5]).all()


def test_confusions_of_labels_are_of_the_true_label_against_one_that_is_absent() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, np.nan, 0]], np.float32)
    decided = np.array([[0, 1, 0], [1, 1, 1], [1, 1, 0]], bool)
    # Of the clips with class 0: class 0 is found in two; class 1 is wrong in the first alone; class 2 in the second.
    assert count_confusions(decided, targets).tolist() == [[2, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_histograms_of_scores_leave_unknown_labels_out() -> None:
    scores, targets = validate([[0.1, 0.99], [0.6, 1.0]], [[0, 1], [np.nan, 1]])
    negatives, positives = count_scores(scores, targets)
    assert (negatives.sum(), positives.sum()) == (1, 2)
    assert positives[-1] == 2


def test_confusion_matrix_sums_to_the_clips() -> None:
    scores, _ = random_case(2)
    counts = confusion_matrix(scores, one_hot(list(range(7)) * 28 + [0] * 4, 7))
    assert counts.sum() == 200
    assert counts.sum(axis=1).tolist() == [32, *[28] * 6]


def test_d_prime_of_known_areas() -> None:
    # Two unit normals at distance d have AUC Phi(d / sqrt 2): at d = 1, 0.7602499389065233.
    assert d_prime(0.7602499389065233) == pytest.approx(1, abs=1e-12)
    assert d_prime(0.5) == pytest.approx(0, abs=1e-12)
    assert d_prime(1.0) == math.inf
    assert math.isnan(d_prime(math.nan))


def test_scores_of_extreme_logits_are_finite_and_stay_apart() -> None:
    many = to_scores([[-800.0, 800.0, -50.0, -49.0]], "sigmoid")
    assert np.isfinite(many).all()
    assert many[0, 2] < many[0, 3]
    one = to_scores([[1000.0, 0.0], [-1000.0, -1000.0]], "softmax")
    np.testing.assert_allclose(one, [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.1, 0.2], [0, 1], r"shape \(clip, class\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "at least one of each"),
        ([[0.1, 0.2]], [[0, 1, 0]], r"shape of scores \(1, 2\)"),
        ([[0.1, math.nan]], [[0, 1]], "row 0, class 1"),
        ([[0.1, 0.2]], [[0.4, 0.6]], "expected 0 or 1, found 0.4"),
    ],
)
def test_validate_names_what_is_wrong(scores, targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(scores, targets)


def test_label_kind_one_needs_exactly_one_class_a_clip() -> None:
    with pytest.raises(ValueError, match="found 2 in row 1"):
        evaluate(np.zeros((2, 2)), [[1, 0], [1, 1]], "one")


@pytest.mark.parametrize("stage", ["train", "evaluate", "enhance", "attention"])
def test_a_metric_of_the_report_is_no_part_of_what_trains_or_predicts(stage: str) -> None:
    """So that adding one reruns the report alone. Curves of validation clips have their metrics from the same functions."""
    definitions = reach(project_sources(), [(f"stages.{stage}", "main")], EVERY_KIND).definitions
    assert not {module for module, _ in definitions} & {
        "pipeline.evaluation.metrics",
        "pipeline.evaluation.metric_definition",
        "pipeline.evaluation.reported.standard",
        "pipeline.reporting.summary",
    }
    functions = {name for module, name in definitions if module == "pipeline.evaluation.metric_functions"}
    assert ("average_precision" in functions) == (stage == "train")


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_an_epochs_metrics_are_those_of_the_report(label_kind: str) -> None:
    scores, targets = random_case(4)
    targets = targets if label_kind == "many" else one_hot([number % 7 for number in range(200)], 7)
    report = evaluate_scores(scores, targets, label_kind)
    assert epoch_scorer(label_kind)(scores, targets) == {
        "accuracy": report.values[SHARE[label_kind]],
        "mAP": report.values["mAP"],
        "auc": report.values["AUC"],
        "precision": report.values["macro_precision"],
        "recall": report.values["macro_recall"],
        "f1": report.values["macro_f1"],
        "d_prime": report.values["d_prime"],
    }


def golden_values() -> dict[str, dict[str, Any]]:
    """Return every metric of two cases; the confusion matrix as lists, as JSON has it."""
    scores, targets = random_case(11, num_clips=60, num_classes=4)
    of_one = evaluate(scores, one_hot([position % 4 for position in range(60)], 4), "one")
    assert of_one.confusion is not None
    many = evaluate_scores(scores, targets, "many")
    found = {"many": asdict(many), "one": asdict(of_one) | {"confusion": of_one.confusion.tolist()}}
    for values in found.values():
        values["values"] = {name: value for name, value in values["values"].items() if not math.isnan(value)}
    return found


def test_golden_values_have_not_moved() -> None:
    """Those of the standard metrics: one that is added needs no golden value."""
    expected, found = json.loads(GOLDEN.read_text()), golden_values()
    for label_kind, values in expected.items():
        classes, measured = list(found[label_kind].pop("classes")), found[label_kind].pop("values")
        assert classes == [pytest.approx(entry, abs=1e-12) for entry in values.pop("classes")]
        golden = values.pop("values")
        assert {name: measured[name] for name in golden} == pytest.approx(golden, abs=1e-12)
        assert {metric.name for metric in METRICS if label_kind in metric.label_kinds} <= set(golden)
        assert found[label_kind] == values


if __name__ == "__main__":  # a change of definition is written down with: python -m tests.test_metrics
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden_values(), indent=1) + "\n")
