"""Tables of labels.use: overrides and soft labels, what is wrong with them, and whose targets they change."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_clips, make_spectrogram

from pipeline.artifacts.clips import CLIPS, ClipsMetadata, ClipTable, LabelKind, open_clips
from pipeline.artifacts.development import open_development, open_targets, target_columns
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.splits import SPLIT
from pipeline.corpora.label_tables import join_cell, split_cell
from pipeline.corpora.relabelling import refresh_training_labels
from pipeline.errors import CorpusError
from pipeline.training.losses import loss_of
from pipeline.training.targets import class_targets, decide_soft
from stages import development
from tools.why import trace

NAMES = ["owl", "rain", "sea"]
LABELS = [[0], [1], [2], [0], [1], [2]]


def manifest(folder: Path, *, kind: LabelKind = "one", folds: list[str] | None = None, **columns: Any) -> ClipTable:
    """Write a manifest of clips a to f, two of each class."""
    sources = [f"{name}.wav" for name in "abcdef"]
    path = make_clips(folder / "clips.parquet", folder, sources, labels=LABELS, fold=folds or list("112122"), **columns)
    clips = CLIPS.open(path)
    metadata: ClipsMetadata = {**clips.metadata, "classes": NAMES, "label_kind": kind}
    CLIPS.write(path, clips.columns, metadata)
    return open_clips(path)


def use(folder: Path, text: str, clips: ClipTable, name: str = "mine.csv") -> list[dict[str, Any]]:
    """Return the rows of the training labels that a table of this text makes."""
    (folder / name).write_text(text)
    rows = refresh_training_labels(folder / name, clips, folder / "training_labels.parquet").columns.to_pylist()
    return [{key: value for key, value in row.items() if value != []} for row in rows]


def test_overrides_are_read_by_name(tmp_path: Path) -> None:
    rows = use(tmp_path, "clip,labels,note\nc,owl,hoots\na,sea,\n", manifest(tmp_path))
    assert rows == [{"clip_id": "a", "labels": [2]}, {"clip_id": "c", "labels": [0]}]


def test_overrides_of_several_labels_keep_what_is_unknown(tmp_path: Path) -> None:
    clips = manifest(tmp_path, kind="many", unknown=[[1, 2], [], [], [], [], []])
    rows = use(tmp_path, 'clip;labels\na;rain|owl\nb;\nc;["owl"]\n', clips)
    assert rows == [
        {"clip_id": "a", "labels": [0, 1], "unknown": [2]},
        {"clip_id": "b"},
        {"clip_id": "c", "labels": [0]},
    ]


@pytest.mark.parametrize("labels", [["a"], ["a|b", "c"], ['say "x", y', "z"], [], ["[x]"]])
def test_a_cell_holds_any_labels(labels: list[str]) -> None:
    assert split_cell(join_cell(labels, one=False), one=False) == labels


def test_a_table_is_written_only_when_it_changes(tmp_path: Path) -> None:
    clips, path = manifest(tmp_path), tmp_path / "training_labels.parquet"
    assert len(refresh_training_labels(None, clips, path)) == 0
    before = path.stat().st_mtime_ns
    refresh_training_labels(None, clips, path)
    assert path.stat().st_mtime_ns == before
    use(tmp_path, "clip,labels\na,sea\n", clips)
    changed = path.read_bytes()
    use(tmp_path, "clip,labels,note\na,sea,another note\n", clips)
    assert path.read_bytes() == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,labels\nb,owl\nz,owl\n", r"mine\.csv: clips that the corpus has not \(write .* \(1\): row 3: 'z'"),
        ("clip,labels\nb,howl\n", r"labels that are no classes \(these are owl, rain, sea\) \(1\): row 2: 'howl'"),
        ("clip,labels\nb,owl\nb,sea\n", r"clips listed twice \(delete one of the rows\) \(1\): rows 2 and 3: b"),
        ("clip,labels\nb,\n", r"rows without exactly one label, .* \(1\): row 2: none"),
        ("file,labels\nb,owl\n", "line 2: expected a column `clip`, found only: file, labels"),
        ("clip,label\nb,owl\n", r"columns that are missing, .* 'owl', 'rain', 'sea'\n(.*\n)*.*the columns `clip` and"),
        ("clip,owl,rain,sea\na,1,x,0\n", "expected a column of probabilities for each class, found .*'x'"),
        ("clip,owl,rain,sea\na,1,0,0\nb,.5,.4,.2\n", r"do not sum to 1, .* \(1\): row 3: b \(1\.1\)"),
        ("clip,owl,rain,sea\na,2,-1,0\n", r"values outside 0 to 1 .* \(1\): row 2: a"),
        ("clip,owl,rain,sea\na,1,,0\n", r"rows with empty cells, .* \(1\): row 2: a"),
        ("clip,owl,rain,sea,fog\na,1,0,0,0\n", r"columns that are no classes \(1\): 'fog'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        use(tmp_path, text, manifest(tmp_path))


def test_clips_of_published_test_and_validation_sets_are_named(tmp_path: Path) -> None:
    clips = manifest(tmp_path, folds=["train", "test", "val", "train", "train", "train"])
    with pytest.raises(
        CorpusError, match=r"labels stay as published .* \(2\): row 3: b \(test\), row 4: c \(validation"
    ):
        use(tmp_path, "clip,labels\na,sea\nb,sea\nc,sea\n", clips)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"labels\.use: expected a table of labels, found no file at .*none\.csv"):
        refresh_training_labels(tmp_path / "none.csv", manifest(tmp_path), tmp_path / "training_labels.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_soft_labels_are_probabilities_by_class(tmp_path: Path, suffix: str) -> None:
    clips, path = manifest(tmp_path), tmp_path / f"soft.{suffix}"
    columns = {"sea": [0.7, 0.2], "clip": ["c", "a"], "rain": [0.1, 0.2], "owl": [0.2, 0.6]}
    if suffix == "csv":
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join(",".join(map(str, row)) for row in [list(columns), *rows]) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    table = refresh_training_labels(path, clips, tmp_path / "training_labels.parquet")
    assert table.list("clip_id") == ["a", "c"]
    assert table.list("labels") == [[0], [2]]
    np.testing.assert_allclose(table.list("soft"), [[0.6, 0.2, 0.2], [0.2, 0.1, 0.7]], rtol=1e-6)


def test_an_empty_cell_is_unknown_where_clips_have_several_labels(tmp_path: Path) -> None:
    rows = use(tmp_path, "clip,owl,rain,sea\na,0.9,,0.5\n", manifest(tmp_path, kind="many"))
    assert rows[0]["labels"] == [0, 2]
    assert rows[0]["unknown"] == [1]
    np.testing.assert_allclose(rows[0]["soft"], [0.9, math.nan, 0.5], rtol=1e-6)


# what is trained on


def targets_of(
    folder: Path, text: str, fold: str, *, kind: LabelKind = "one"
) -> tuple[list[list[float]], list[str], bytes]:
    """Return the targets of a fold's development set with a table of this text, its clips, and the bytes of the file."""
    folder.mkdir(exist_ok=True)
    clips = manifest(folder, kind=kind)
    use(folder, text, clips)
    frames = {clip: np.full((3, 2), 1.0, np.float32) for clip in clips.list("clip_id")}
    shutil.rmtree(folder / "spectrogram", ignore_errors=True)
    index = make_spectrogram(folder / "spectrogram", frames) / "index.parquet"
    roles = ["test" if own == fold else "train" for own in clips.list("fold")]
    SPLIT.write(
        folder / "split.parquet",
        {"clip_id": clips.list("clip_id"), "role": roles},
        {"fold": fold, "seed": 0, "rule": "by hand"},
    )
    paths = folder / "development.parquet", folder / "targets.parquet"
    development.run(clips.path, folder / "split.parquet", index, *paths, folder / "training_labels.parquet")
    opened = open_development(paths[0], fold=fold)
    own = open_targets(paths[1], opened)
    return class_targets(own, opened.list("clip_id")).tolist(), opened.list("clip_id"), paths[1].read_bytes()


NO_ROWS = "clip,labels\n"


def test_a_row_changes_the_folds_that_train_on_its_clip_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "clip,labels\nf,owl\n"  # fold 2 tests it
    targets, clips, changed = targets_of(tmp_path / "w", text, "1")
    assert clips == ["c", "e", "f"]
    assert targets[2] == [1, 0, 0]
    assert changed != targets_of(tmp_path / "w", NO_ROWS, "1")[2]
    assert targets_of(tmp_path / "w", text, "2")[2] == targets_of(tmp_path / "w", NO_ROWS, "2")[2]


def test_validation_clips_keep_their_published_labels(tmp_path: Path) -> None:
    clips = manifest(tmp_path)
    (tmp_path / "mine.csv").write_text("clip,labels\na,sea\nb,owl\nc,rain\n")
    used = refresh_training_labels(tmp_path / "mine.csv", clips, tmp_path / "training_labels.parquet")
    roles = pa.chunked_array([["train", "validation", "test", "train", "train", "train"]])
    columns = target_columns(clips.columns, roles, used.columns)
    assert columns["labels"].to_pylist() == [[2], [1], [2], [0], [1], [2]]


def test_soft_labels_are_the_targets_of_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    targets, clips, _ = targets_of(tmp_path / "w", "clip,owl,rain,sea\nf,0.5,0.25,0.25\na,0,0,1\n", "1")
    assert dict(zip(clips, targets, strict=True)) == {"c": [0, 0, 1], "e": [0, 1, 0], "f": [0.5, 0.25, 0.25]}
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    loss = loss_of("one")(logits, torch.tensor([targets[2]]))
    assert loss.item() == pytest.approx(math.log(3))


def test_a_class_that_loses_its_last_training_clip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=r"classes without a training clip \(1\): rain\n.*mend its rows"):
        targets_of(tmp_path / "w", "clip,labels\ne,owl\n", "1")


def test_why_says_what_a_clip_is_trained_on(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.data.mkdir()
    clips = manifest(layout.data)
    (tmp_path / "soft.csv").write_text("clip,owl,rain,sea\na,0.2,0.7,0.1\n")
    refresh_training_labels(tmp_path / "soft.csv", clips, layout.training_labels)
    texts = [finding.text for finding in trace("a", layout)]
    assert "trained on as rain (70%), by soft.csv" in texts
    assert not any("trained on" in finding.text for finding in trace("b", layout))


def test_classical_models_get_decided_labels() -> None:
    soft = np.array([[0.4, 0.35, 0.25], [0, 1, 0]], np.float32)
    assert decide_soft(soft, "one").tolist() == [[1, 0, 0], [0, 1, 0]]
    many = np.array([[0.5, np.nan, 0.4]], np.float32)
    np.testing.assert_array_equal(decide_soft(many, "many"), [[1, np.nan, 0]])
    hard = soft[1:]
    assert decide_soft(hard, "one") is hard
