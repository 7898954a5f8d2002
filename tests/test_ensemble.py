"""Averaging of stored predictions."""

from pathlib import Path

import numpy as np
import pytest
from conftest import OF_A_MODEL

from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.tables import Table
from pipeline.errors import ArtifactError
from pipeline.evaluation.ensemble import average_predictions, score_clips
from pipeline.evaluation.metric_functions import to_scores
from pipeline.evaluation.metrics import evaluate_clips

CLASSES = ["rain", "dog", "saw"]


def write(
    path: Path,
    clips: list[str],
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    fold: str = "1",
    classes=CLASSES,
    roles=None,
) -> Table:
    metadata = {"model": path.stem, "fold": fold, "seed": 0, "classes": classes, "label_kind": "one", "weights": "w"}
    columns = {
        "clip_id": clips,
        "role": roles or ["test"] * len(clips),
        "logits": logits.astype(np.float32).tolist(),
        "targets": targets.astype(np.float32).tolist(),
    }
    PREDICTIONS.write(path, columns, metadata | OF_A_MODEL)
    return open_predictions(path)


LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
TARGETS = np.eye(3)[[0, 1, 2, 0]]
CLIPS = ["a", "b", "c", "d"]


def test_the_average_is_of_probabilities_and_matches_rows_by_clip(tmp_path: Path) -> None:
    other = LOGITS[::-1] * 2
    tables = [
        write(tmp_path / "x.parquet", CLIPS, LOGITS, TARGETS),
        write(tmp_path / "y.parquet", CLIPS[::-1], other[::-1], TARGETS[::-1]),
    ]
    average = average_predictions(tables, "test")
    assert average.clip_ids == tuple(CLIPS)
    expected = (to_scores(LOGITS, "softmax") + to_scores(other, "softmax")) / 2
    np.testing.assert_allclose(average.scores, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(average.targets, TARGETS)


def test_an_ensemble_of_one_model_is_that_model(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", CLIPS, LOGITS, TARGETS)
    alone, twice = score_clips(table, "test"), average_predictions([table, table], "test")
    np.testing.assert_array_equal(alone.scores, twice.scores)
    assert evaluate_clips(alone).values == evaluate_clips(twice).values


def test_only_clips_of_the_role_count(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", CLIPS, LOGITS, TARGETS, roles=["train", "test", "validation", "test"])
    assert score_clips(table, "test").clip_ids == ("b", "d")


def test_two_wrong_members_can_be_right_together(tmp_path: Path) -> None:
    # Each is sure of its own wrong class and second-best about the truth.
    logits = [np.array([[2.0, 2.1, -9.0]]), np.array([[2.0, -9.0, 2.1]])]
    tables = [write(tmp_path / f"{i}.parquet", ["a"], values, np.eye(3)[[0]]) for i, values in enumerate(logits)]
    assert [evaluate_clips(score_clips(table, "test")).values["accuracy"] for table in tables] == [0.0, 0.0]
    assert evaluate_clips(average_predictions(tables, "test")).values["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": "2"}, "fold: expected 1"),
        ({"classes": ["rain", "saw", "dog"]}, "classes: expected"),
        ({"clips": ["a", "b", "c", "e"]}, r"clip_id: expected the 4 clips .* 1 missing \(d, ...\)"),
        ({"targets": np.eye(3)[[0, 1, 2, 1]]}, "targets of d"),
    ],
)
def test_members_that_do_not_belong_together_are_named(tmp_path: Path, change, message: str) -> None:
    first = write(tmp_path / "x.parquet", CLIPS, LOGITS, TARGETS)
    values = {"clips": CLIPS, "logits": LOGITS, "targets": TARGETS} | change
    second = write(tmp_path / "y.parquet", values.pop("clips"), values.pop("logits"), values.pop("targets"), **values)
    with pytest.raises(ArtifactError, match=rf"y\.parquet: {message}"):
        average_predictions([first, second], "test")


def test_a_role_without_clips_is_named(tmp_path: Path) -> None:
    table = write(tmp_path / "x.parquet", CLIPS, LOGITS, TARGETS)
    with pytest.raises(ArtifactError, match="expected clips of role validation, found test"):
        score_clips(table, "validation")
