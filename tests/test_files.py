"""Files that a user names: folders, patterns, tables and lists; what stands for no file is named with what to do."""

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SonolexError
from pipeline.inference.files import find_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.FLAC", "notes.txt", "deep/er/c.mp3", "deep/d.ogg", "empty/.keep", "texts/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(folder: Path, *names: str, stdin: str = "", root: Path | None = None) -> list[str]:
    files = find_files([name.replace("~", str(folder)) for name in names], stdin=io.StringIO(stdin), root=root)
    return [os.path.relpath(path, folder) for path in files.paths]


def test_a_folder_stands_for_the_audio_in_it(folder: Path) -> None:
    assert found(folder, "~") == ["a.FLAC", "b.wav", "deep/d.ogg", "deep/er/c.mp3"]


def test_a_pattern_stands_for_what_matches(folder: Path) -> None:
    assert found(folder, "~/*.wav") == ["b.wav"]
    assert found(folder, "~/**/*.mp3") == ["deep/er/c.mp3"]
    assert found(folder, "~/d*") == ["deep/d.ogg", "deep/er/c.mp3"]
    (folder / "what[1].wav").touch()
    assert found(folder, "~/what[1].wav") == ["what[1].wav"]


def test_a_table_names_files_below_its_folder_or_a_root(folder: Path) -> None:
    (folder / "deep" / "table.csv").write_text("label,filename\ndog,d.ogg\ncat,er/c.mp3\n")
    assert found(folder, "~/deep/table.csv") == ["deep/d.ogg", "deep/er/c.mp3"]
    assert found(folder, "~/deep/table.csv", root=folder) == ["d.ogg", "er/c.mp3"]
    (folder / "table.jsonl").write_text(json.dumps({"path": str(folder / "b.wav")}) + "\n")
    assert found(folder, "~/table.jsonl") == ["b.wav"]
    pq.write_table(pa.table({"file": ["deep/d.ogg"], "labels": [["x", "y"]]}), folder / "table.parquet")
    assert found(folder, "~/table.parquet") == ["deep/d.ogg"]


def test_a_list_comes_from_standard_input(folder: Path) -> None:
    assert found(folder, "-", "~/b.wav", stdin=f"{folder}/deep/d.ogg\n\n{folder}/gone.wav\n") == [
        "deep/d.ogg",
        "gone.wav",
        "b.wav",
    ]


def test_a_file_that_is_named_twice_is_taken_once(folder: Path) -> None:
    files = find_files([str(folder / "b.wav"), str(folder), f"{folder}/deep/../b.wav"], stdin=io.StringIO())
    assert [path.name for path in files.paths] == ["b.wav", "a.FLAC", "d.ogg", "c.mp3"]
    assert files.repeated == {folder / "b.wav": 3}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_without_permission_is_a_failure(folder: Path) -> None:
    (folder / "deep").chmod(0)
    files = find_files([str(folder)], stdin=io.StringIO())
    (folder / "deep").chmod(0o755)
    assert [path.name for path in files.paths] == ["a.FLAC", "b.wav"]
    assert "deep: expected a folder to list, found: Permission denied" in files.failures[0].message


def test_a_folder_that_cannot_be_listed_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files = find_files([str(folder)], stdin=io.StringIO())
    assert [path.name for path in files.paths] == ["a.FLAC", "b.wav"]
    assert [failure.reason for failure in files.failures] == ["unreadable"]
    assert "expected a folder to list, found: Permission denied; try `chmod u+rx`" in files.failures[0].message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~/empty", r"expected files that end in \.wav, .*, found 1 with other endings"),
        ("~/texts", r"found 1 with other endings; a file of another ending can be named by itself"),
        ("~/*.aac", r"\*\.aac: expected a file that matches, found none"),
        ("-", "found an empty list on standard input"),
        ("~/none.csv", r"none\.csv: expected a table, found no such file"),
        ("~/odd.csv", r"odd\.csv: expected a column path or file or filename or source, found id, label; rename one"),
        ("~/odd.parquet", r"odd\.parquet: expected a Parquet table, found: "),
    ],
)
def test_what_stands_for_no_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / "odd.csv").write_text("id,label\n1,dog\n")
    (folder / "odd.parquet").write_text("no")
    with pytest.raises(SonolexError, match=message):
        found(folder, name)
