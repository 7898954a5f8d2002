"""Names of labels, groups, folds and files: one spelling of each, and folds that paths can hold."""

import logging
import re
from pathlib import Path

import pytest
from sounds import CASES
from test_corpora import table_params

from pipeline.artifacts.clips import open_clips
from pipeline.corpora.base import ClipRow, CorpusListing
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.registry import list_corpus
from pipeline.corpora.spelling import safe_folds, spelled_on_disk, tidied
from pipeline.errors import CorpusError
from pipeline.params import is_safe_name

TABLES = CASES / "tables"
NFC, NFD = "caf\u00e9", "cafe\u0301"


def shared_table(name: str) -> Path:
    path = TABLES / name
    if not path.is_file():
        pytest.skip(f"needs {path}, which is not part of the project")
    return path


def test_folds_get_names_that_paths_can_hold_and_no_two_the_same() -> None:
    names = ["1", "", "fold 1", "fold_1", "fold/1", "-x", NFC, "a" * 70, "a" * 71, "Fold 2"]
    safe = safe_folds(names)
    assert (safe["1"], safe[""], safe["fold_1"], safe["Fold 2"], safe["-x"], safe[NFC]) == (
        "1", "", "fold_1", "Fold_2", "_x", "caf_",
    )  # fmt: skip
    assert re.fullmatch("fold_1_[0-9a-f]{8}", safe["fold 1"])
    assert re.fullmatch("fold_1_[0-9a-f]{8}", safe["fold/1"])
    assert len(set(safe.values())) == len(names)
    assert all(is_safe_name(name) for name in safe.values() if name)
    assert safe_folds([*names, "new fold"])["fold 1"] == safe["fold 1"]


def test_a_renamed_fold_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listing = CorpusListing(("a",), "one", "", [ClipRow("x", "x.wav", ("a",), fold="set A")])
    assert tidied(listing, tmp_path).table()["fold"].to_pylist() == ["set_A"]
    assert "'set A' is set_A" in caplog.text


def test_labels_groups_and_folds_are_stripped_and_in_one_form(tmp_path: Path) -> None:
    clips = [
        ClipRow("x", "x.wav", (f" {NFD} ",), group="g ", fold="1", unknown=(f"{NFD} tit",)),
        ClipRow("y", "y.wav", (NFC,), group=" g", fold="1 "),
    ]
    table = tidied(CorpusListing((NFD, f"{NFC} tit"), "many", "", clips), tmp_path).table()
    assert table["labels"].to_pylist() == [[NFC], [NFC]]
    assert table["unknown"].to_pylist() == [[f"{NFC} tit"], []]
    assert table["group"].to_pylist() == ["g", "g"]
    assert table["fold"].to_pylist() == ["1", "1"]


def test_a_table_in_nfc_finds_files_in_nfd_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFD} 1.wav").write_bytes(b"one")
    (tmp_path / NFC).mkdir()
    (tmp_path / NFC / "2.wav").write_bytes(b"two")
    assert spelled_on_disk(tmp_path, f"{NFC}/2.wav") == f"{NFC}/2.wav"
    assert spelled_on_disk(tmp_path, f"{NFC}/gone.wav") == f"{NFC}/gone.wav"
    (tmp_path / NFC / "2.wav").unlink()
    (tmp_path / NFC).rmdir()
    (tmp_path / "clips.csv").write_text(f"path,labels\n{NFC}/{NFC} 1.wav,{NFC}\n")
    refresh = refresh_manifest(table_params(tmp_path), tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    assert (refresh.num_clips, refresh.num_missing) == (1, 0)
    clips = open_clips(tmp_path / "clips.parquet")
    assert clips.list("clip_id") == [f"{NFC}/{NFC} 1.wav"]
    assert clips.list("source") == [f"{NFD}/{NFD} 1.wav"]


def test_groups_of_a_table_are_stripped() -> None:
    path = shared_table("group_spaces4.csv")
    params = table_params(path.parent, path.name, path_column="file", labels_column="label", group_column="group")
    assert set(list_corpus(params).table()["group"].to_pylist()) == {"bird0", "bird1"}


def test_a_column_that_comes_twice_is_named() -> None:
    path = shared_table("dup_column.csv")
    with pytest.raises(CorpusError, match=r"columns listed twice \(rename or delete one\) \(1\): label$"):
        list_corpus(table_params(path.parent, path.name, path_column="file", labels_column="label"))


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_a_corpus_without_a_class_stops_at_once(tmp_path: Path, label_kind: str) -> None:
    path = shared_table("no_labels.csv")
    params = table_params(path.parent, path.name, path_column="file", labels_column="label", label_kind=label_kind)
    with pytest.raises(CorpusError, match="expected clips with labels, found none in any of the 24 clips"):
        refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content.sqlite")


def test_the_same_audio_with_different_labels_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clips.csv").write_text("path,labels\na.wav,wren\nb.wav,tit\nc.wav,owl\nd.wav,owl\ne.wav,owl\n")
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y"), ("d", b"y"), ("e", b"z")):
        (tmp_path / f"{name}.wav").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        refresh_manifest(table_params(tmp_path), tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    assert "1 times the same audio has different labels" in caplog.text
    assert "a.wav (wren) = b.wav (tit)" in caplog.text
    assert "c.wav" not in caplog.text
