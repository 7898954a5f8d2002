"""Labels that are unknown count in no loss, no metric and no classifier."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_clips
from sklearn.metrics import (
    average_precision_score,
    coverage_error,
    f1_score,
    label_ranking_average_precision_score,
    roc_auc_score,
)

from pipeline.artifacts.clips import open_clips
from pipeline.evaluation.calibration import measure_reliability
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.evaluation.intervals import map_interval
from pipeline.evaluation.metric_functions import average_precision, roc_auc, validate
from pipeline.evaluation.metrics import evaluate_scores
from pipeline.models.baselines import kernel_classifier
from pipeline.models.baselines.kernel_classifier import fit_one_vs_rest, least_squares, score, support_vectors
from pipeline.training.classification import smooth_labels
from pipeline.training.losses import loss_of
from pipeline.training.sampling import clip_weights, draw_rows
from pipeline.training.targets import class_targets

NAN = float("nan")


def masked(num_clips: int = 40, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and targets, a third of them unknown."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((num_clips, num_classes)) < 0.4).astype(np.float32)
    scores = np.round(0.6 * targets * generator.random(targets.shape) + 0.4 * generator.random(targets.shape), 2)
    targets[generator.random(targets.shape) < 1 / 3] = np.nan
    return scores, targets


def test_targets_are_nan_where_the_manifest_says_unknown_unless_a_label_was_added(tmp_path: Path) -> None:
    labels, unknown = [[0], [1], []], [[1], [1, 2], [0, 1, 2]]
    clips = make_clips(
        tmp_path / "clips.parquet", tmp_path, ["a.wav", "b.wav", "c.wav"], labels=[*labels], unknown=[[], [], []]
    )
    assert class_targets(open_clips(clips), ["b"]).tolist() == [[0, 1]]
    labels[2] = [2]
    clips = make_clips(
        tmp_path / "clips.parquet", tmp_path, ["a.wav", "b.wav", "c.wav"], labels=labels, unknown=unknown
    )
    targets = class_targets(open_clips(clips), ["c", "a", "b"])
    np.testing.assert_array_equal(targets, [[NAN, NAN, 1], [1, NAN, 0], [0, 1, NAN]])


def test_the_loss_is_the_mean_over_the_known_classes_of_each_clip() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0], [2.0, 0.5, 9.0], [1.0, 1.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[1.0, NAN, 0.0], [0.0, NAN, NAN], [NAN, NAN, NAN]])
    loss = loss_of("many")(logits, targets)
    by_hand = ((np.log(2) + np.log1p(np.exp(-1.0))) / 2 + np.log1p(np.exp(2.0)) + 0) / 3
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, targets.isnan())
    # Micro-batches add up.
    parts = sum(loss_of("many")(logits[i : i + 1], targets[i : i + 1]).item() / 3 for i in range(3))
    assert parts == pytest.approx(by_hand)


def test_without_unknown_labels_the_loss_is_what_it_was() -> None:
    logits, targets = torch.randn(5, 4), torch.rand(5, 4)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert torch.equal(loss_of("many")(logits, targets), expected)


def test_smoothing_and_mixing_keep_unknown_labels_unknown() -> None:
    targets = torch.tensor([[1.0, NAN, 0.0], [0.0, 1.0, 0.0]])
    soft = smooth_labels(targets, 0.1, "sigmoid")
    assert torch.equal(soft.isnan(), targets.isnan())
    mixed = 0.3 * soft + 0.7 * soft.flip(0)
    assert mixed.isnan().tolist() == [[False, True, False], [False, True, False]]


def test_metrics_are_those_of_the_known_clips_of_each_class() -> None:
    scores, targets = masked()
    known = ~np.isnan(targets)
    pairs = [(targets[known[:, i], i], scores[known[:, i], i]) for i in range(3)]
    np.testing.assert_allclose(average_precision(scores, targets), [average_precision_score(*pair) for pair in pairs])
    np.testing.assert_allclose(roc_auc(scores, targets), [roc_auc_score(*pair) for pair in pairs])
    found = evaluate_scores(scores, targets, "many")
    decided = scores >= 0.5
    right = ((decided == (targets == 1)) | ~known).all(axis=1)[known.any(axis=1)].mean()
    assert found.values["exact_match"] == pytest.approx(right)
    assert found.values["hamming_score"] == pytest.approx((decided == (targets == 1))[known].mean())
    assert found.values["all_zeros_hamming_score"] == pytest.approx((targets[known] == 0).mean())
    calibration = measure_reliability(scores[known][:, None], targets[known][:, None] == 1, "many")
    assert found.values["label_calibration_error"] == pytest.approx(calibration.error)
    assert [own.num_positives for own in found.classes] == (targets == 1).sum(axis=0).tolist()
    assert [own.num_decided for own in found.classes] == (decided & known).sum(axis=0).tolist()
    hits = (decided & (targets == 1)).sum()
    micro = 2 * hits / ((decided & known).sum() + (targets == 1).sum())
    assert found.values["micro_f1"] == pytest.approx(micro)
    assert epoch_scorer("many")(scores, targets)["mAP"] == found.values["mAP"]


def test_metrics_of_a_clips_labels_are_those_of_its_known_ones() -> None:
    scores, targets = masked(num_classes=6)
    f1, ranking, covered = [], [], []
    for own, truth in zip(scores, targets, strict=True):
        known = ~np.isnan(truth)
        if known.any():
            pair = truth[known][None], own[known][None]
            f1.append(f1_score(pair[0], pair[1] >= 0.5, average="samples", zero_division=1.0))
            if (truth == 1).any():
                ranking.append(label_ranking_average_precision_score(*pair))
                covered.append(coverage_error(*pair))
    values = evaluate_scores(scores, targets, "many").values
    assert values["sample_f1"] == pytest.approx(np.mean(f1))
    assert values["label_ranking_average_precision"] == pytest.approx(np.mean(ranking))
    assert values["coverage"] == pytest.approx(np.mean(covered))


def test_a_clip_without_known_labels_changes_nothing() -> None:
    scores, targets = masked()
    more = np.vstack([scores, [[0.9, 0.1, 0.5]]]), np.vstack([targets, [[NAN] * 3]])
    expected, found = (evaluate_scores(*pair, "many").values for pair in ((scores, targets), more))
    assert found == pytest.approx(expected, nan_ok=True)


def test_scores_of_unknown_labels_do_not_matter() -> None:
    scores, targets = masked()
    other = np.where(np.isnan(targets), 1 - scores, scores)
    assert evaluate_scores(scores, targets, "many") != evaluate_scores(other, np.nan_to_num(targets), "many")
    values, others = (evaluate_scores(own, targets, "many").values for own in (scores, other))
    assert values == pytest.approx(others, abs=0, nan_ok=True)
    assert map_interval(scores, targets) == map_interval(other, targets)
    interval = map_interval(scores, targets)
    assert interval.low < evaluate_scores(scores, targets, "many").values["mAP"] < interval.high


def test_a_class_that_nobody_knows_has_no_metric() -> None:
    scores, targets = masked()
    targets[:, 1] = np.nan
    assert np.isnan(average_precision(scores, targets)).tolist() == [False, True, False]
    assert np.isnan(evaluate_scores(scores, targets, "many").classes[1].recall)


def test_a_score_that_is_no_number_is_still_refused_where_the_label_is_known() -> None:
    scores, targets = masked()
    row, column = np.argwhere(~np.isnan(targets))[0]
    scores[row, column] = np.nan
    with pytest.raises(ValueError, match=f"expected finite numbers, found nan in row {row}, class {column}"):
        validate(scores, targets)


def test_balanced_sampling_takes_unknown_labels_for_labels_that_a_clip_has_not() -> None:
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]])
    assert torch.equal(clip_weights(targets), clip_weights(targets.nan_to_num(0)))


def test_balanced_sampling_takes_published_weights() -> None:
    targets, weights = torch.eye(4), torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    torch.manual_seed(0)
    counts = np.bincount(np.concatenate([draw_rows(targets, "balanced", weights) for _ in range(500)]), minlength=4)
    assert counts[0] == counts[2] == 0
    assert counts[3] / counts[1] == pytest.approx(3, rel=0.15)
    torch.manual_seed(0)
    shuffled = draw_rows(targets, "shuffled", weights)
    assert sorted(shuffled.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("solver", [support_vectors(1.0), least_squares(0.1)])
@pytest.mark.parametrize(("most_exact", "most_float32"), [(100, 100), (10, 100), (10, 10)])  # the last on a basis
def test_a_kernel_classifier_of_a_class_is_fitted_on_the_clips_that_are_known(
    most_exact: int, most_float32: int, solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_classifier, "MOST_EXACT_ROWS", most_exact)
    monkeypatch.setattr(kernel_classifier, "MOST_FLOAT32_ROWS", most_float32)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, 4)) + 3 * (np.arange(30)[:, None] % 2)
    targets = np.stack([np.arange(30) % 2 == 0, np.arange(30) % 3 == 0], axis=1).astype(np.float32)
    hidden = targets.copy()
    hidden[6:, 0] = np.nan
    clips = np.arange(30)

    def right(own: np.ndarray) -> bool:
        weights = fit_one_vs_rest(features, clips, own, solver, kernel_width=1.0, label_kind="many", seed=0)
        logits = score(weights, features, kernel_width=1.0)
        return bool(((logits[:, 0] > 0) == (targets[:, 0] > 0)).all())

    assert right(hidden)
    assert not right(np.nan_to_num(hidden))  # what would be learned if these labels were negative
