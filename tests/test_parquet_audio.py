"""Audio in Parquet files: the index of rows, reading of rows in place, and what is wrong with files."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.corpora.parquet_audio as parquet_audio
from pipeline.artifacts.files import file_digest
from pipeline.corpora.content import forget
from pipeline.corpora.parquet_audio import ParquetIndex, index_parquet, read_columns, read_row
from pipeline.errors import CorpusError

AUDIO = [(f"{name}.flac", name.encode() * 1000) for name in "abcdefghij"]
OLD = 1_700_000_000


def write_parquet(path: Path, audio: list[tuple[str | None, bytes | None]], group: int = 3, **columns: Any) -> Path:
    """Write rows of (path, bytes) as Hugging Face does; dated back, since fresh files are not remembered."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = pa.array([{"bytes": content, "path": name} for name, content in audio], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, "audio": values}), path, row_group_size=group)
    os.utime(path, (OLD, OLD))
    return path


def index(path: Path) -> ParquetIndex:
    return index_parquet([path], path.parent / "content.sqlite")[0]


def test_rows_have_numbers_names_sizes_and_the_digests_of_plain_files(tmp_path: Path) -> None:
    found = index(write_parquet(tmp_path / "a.parquet", AUDIO))
    assert found.rows["row"].to_pylist() == list(range(10))
    assert found.rows["name"].to_pylist() == [name for name, _ in AUDIO]
    assert found.rows["size"].to_pylist() == [len(content) for _, content in AUDIO]
    (tmp_path / "d.flac").write_bytes(AUDIO[3][1])
    assert found.rows["digest"][3].as_py() == file_digest(tmp_path / "d.flac")
    assert (found.num_read, found.num_empty) == (10, 0)


@pytest.mark.parametrize("order", [range(10), reversed(range(10)), (4, 4, 9, 0, 5)])
def test_rows_are_read_in_any_order(tmp_path: Path, order: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO, group=4)
    assert all(read_row(path, row) == AUDIO[row][1] for row in order)
    assert read_row(path, 10) is None


def test_rows_in_their_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO, group=5)
    opened = []
    batches = parquet_audio._batches
    monkeypatch.setattr(
        parquet_audio, "_batches", lambda file, column, group: opened.append(group) or batches(file, column, group)
    )
    monkeypatch.setattr(parquet_audio, "_ROWS", 2)
    for row in (0, 1, 3, 4, 6, 9):
        read_row(path, row)
    assert opened == [0, 1]


def test_an_unchanged_file_is_not_read_again_and_a_replaced_one_is(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO)
    first = index(path)
    again = index(path)
    assert (again.num_read, again.rows) == (0, first.rows)
    read_row(path, 0)
    write_parquet(path, [(name, content[::-1] + b"!") for name, content in AUDIO])
    replaced = index(path)
    assert replaced.num_read == 10
    assert not set(replaced.rows["digest"].to_pylist()) & set(first.rows["digest"].to_pylist())
    assert read_row(path, 0) == AUDIO[0][1][::-1] + b"!"


def test_a_forgotten_file_is_read_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO)
    index(path)
    forget([path], tmp_path / "content.sqlite")
    assert index(path).num_read == 10


def test_a_killed_run_goes_on_behind_its_last_saved_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO, group=4)
    monkeypatch.setattr(parquet_audio, "_SECONDS_BETWEEN_SAVES", -1.0)
    entries = parquet_audio._entries

    def killed(file: pq.ParquetFile, column: str, group: int, first: int) -> pa.Table:
        if group == 2:
            raise KeyboardInterrupt
        return entries(file, column, group, first)

    with monkeypatch.context() as patch:
        patch.setattr(parquet_audio, "_entries", killed)
        with pytest.raises(KeyboardInterrupt):
            index(path)
    found = index(path)
    assert (found.num_read, len(found.rows)) == (2, 10)


def test_a_damaged_index_is_not_used(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO)
    first = index(path)
    with sqlite3.connect(tmp_path / "content.sqlite") as store:
        (blob,) = store.execute("SELECT entries FROM parquet_files").fetchone()
        flipped = bytearray(blob)
        flipped[len(blob) // 2] ^= 1
        store.execute("UPDATE parquet_files SET entries = ?", (bytes(flipped),))
    again = index(path)
    assert (again.num_read, again.rows) == (10, first.rows)


def test_rows_without_bytes_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_parquet(tmp_path / "a.parquet", [("a.flac", b"a"), ("b.flac", None), ("c.flac", b"")])
    found = index(path)
    assert (found.rows["name"].to_pylist(), found.num_empty) == (["a.flac"], 2)
    assert "2 rows have no bytes" in caplog.text
    assert read_row(path, 1) is None


def test_names_that_are_missing_or_repeated_are_replaced_by_the_number_of_the_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [("a.flac", b"a"), ("a.flac", b"b"), (None, b"c"), ("d.flac", b"d")])
    assert index(path).rows["name"].to_pylist() == ["row 0", "row 1", "row 2", "d.flac"]


def test_rows_that_cannot_be_decoded_are_unread_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO, group=5)
    content = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    found = index(path)
    assert [digest != "" for digest in found.rows["digest"].to_pylist()] == [True] * 5 + [False] * 5
    assert "rows 5 to 9 cannot be read" in caplog.text
    with pytest.raises(OSError, match=r"row 7|Deserializ|Thrift"):
        read_row(path, 7)
    assert read_row(path, 4) == AUDIO[4][1]


def test_a_column_of_binary_values_is_read_and_two_of_them_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "sound": [b"1"]}), tmp_path / "a.parquet")
    assert index(tmp_path / "a.parquet").rows["name"].to_pylist() == ["row 0"]
    assert read_row(tmp_path / "a.parquet", 0) == b"1"
    pq.write_table(pa.table({"sound": [b"1"], "picture": [b"2"]}), tmp_path / "b.parquet")
    with pytest.raises(
        CorpusError, match=r"expected one column of audio .*found sound: binary, picture: binary; write"
    ):
        index(tmp_path / "b.parquet")


def test_audio_is_told_from_images_by_the_metadata_of_hugging_face(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.array([{"bytes": b"1", "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    features = {"image": {"_type": "Image"}, "sound": {"_type": "Audio"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table({"image": values, "sound": values}).replace_schema_metadata(metadata), path)
    assert len(index(path).rows) == 1


def test_columns_are_read_without_audio(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", AUDIO[:2], video_id=["x", "y"], labels=[["/m/1"], ["/m/2", "/m/3"]])
    table = read_columns(path, ["video_id", "labels", "no_such"])
    assert table.to_pydict() == {"video_id": ["x", "y"], "labels": [["/m/1"], ["/m/2", "/m/3"]]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PAR1 cut", "fetch it again"),
        (b"", "fetch it again"),
    ],
)
def test_files_that_are_not_parquet_are_refused_with_what_to_do(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"a\.parquet: expected a Parquet file, found .*{found}"):
        index(path)
