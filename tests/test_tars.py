import io
import logging
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

import pipeline.corpora.tars as tars
from pipeline.artifacts.files import file_digest
from pipeline.corpora.tar_walk import Walk
from pipeline.corpora.tars import TarIndex, index_tars
from pipeline.errors import CorpusError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
Entry = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, *entries: Entry, form: str = "gnu", mode: Any = "w") -> Path:
    """Write (name, bytes) as files, and TarInfo as they are; dated back, since fresh files are not remembered."""
    with tarfile.open(path, mode, format=FORMATS[form]) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def index(path: Path) -> TarIndex:
    return index_tars([path], path.parent / "content.sqlite")[0]


def read_back(path: Path, index: TarIndex) -> dict[str, bytes]:
    data = path.read_bytes()
    rows = index.members.to_pylist()
    return {row["name"]: data[row["offset"] : row["offset"] + row["size"]] for row in rows}


FILES = (("audio/a.flac", b"a" * 1000), ("audio/b.flac", b"b" * 512), ("audio/c.flac", b""))


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_found_in_every_form_of_tar(tmp_path: Path, form: str) -> None:
    names = [("d" * 60 + "/" + "e" * 60 + ".flac", b"long"), ("./dot.flac", b"dot")]
    if form != "ustar":
        names += [("x" * 300 + ".flac", b"longer than ustar can"), ("naïve.flac", b"not ASCII")]
    path = write_tar(tmp_path / "a.tar", *FILES, special("audio", tarfile.DIRTYPE), *names, form=form)
    found = index(path)
    assert (found.refused, found.damage) == ([], "")
    assert read_back(path, found) == dict(FILES) | {name.removeprefix("./"): data for name, data in names}
    (tmp_path / "b").write_bytes(FILES[1][1])
    assert found.members["digest"].to_pylist()[1] == file_digest(tmp_path / "b")


def test_a_size_beyond_octal_is_read() -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 34
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        walk = Walk(io.BytesIO(info.tobuf(form)), "a.tar")
        assert list(walk) == []
        assert f"expected {1 << 34} bytes of huge" in walk.damage


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (("../out.flac", b"x"), "an unsafe name"),
        (("audio/../../out.flac", b"x"), "an unsafe name"),
        (("/etc/passwd", b"x"), "an unsafe name"),
        (("C:/x.flac", b"x"), "an unsafe name"),
        (("..\\out.flac", b"x"), "an unsafe name"),
        (special("link.flac", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (special("hard.flac", tarfile.LNKTYPE, "audio/a.flac"), "a hard link"),
        (special("disk.flac", tarfile.BLKTYPE), "a device"),
        (special("tty.flac", tarfile.CHRTYPE), "a device"),
        (special("pipe.flac", tarfile.FIFOTYPE), "a pipe"),
        (special("sparse.flac", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (special("odd.flac", b"V"), "of the unknown type b'V'"),
        (("audio/a.flac", b"again"), "a name that came before"),
        (("./audio/a.flac", b"again"), "a name that came before"),
    ],
)
def test_a_poisoned_member_is_refused_by_name_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: Entry, why: str
) -> None:
    path = write_tar(tmp_path / "a.tar", FILES[0], entry, *FILES[1:])
    found = index(path)
    name = entry.name if isinstance(entry, tarfile.TarInfo) else entry[0].removeprefix("./")
    assert found.refused == [(name, why)]
    assert read_back(path, found) == dict(FILES)
    assert f"{path}: refused 1 members, which are not read: {name!r} ({why})" in caplog.text


def test_a_pax_header_cannot_smuggle_a_name_or_a_sparse_map(tmp_path: Path) -> None:
    outside, sparse = tarfile.TarInfo("good.flac"), tarfile.TarInfo("map.flac")
    outside.pax_headers = {"path": "../../out.flac"}
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 50)}
    path = write_tar(tmp_path / "a.tar", outside, sparse, FILES[0], form="pax")
    found = index(path)
    assert found.refused == [("../../out.flac", "an unsafe name"), ("map.flac", "a sparse file")]
    assert list(read_back(path, found)) == ["audio/a.flac"]


@pytest.mark.parametrize("cut", ["in a member", "in a header", "between members", "before the end mark"])
def test_the_members_before_a_cut_are_used_and_the_rest_is_read_once_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: str
) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES[:2])
    whole = path.read_bytes()  # a: header 0, bytes 512 to 1536; b: header 1536, bytes 2048 to 2560; then zeros
    at, num = {
        "in a member": (2100, 1),
        "in a header": (1600, 1),
        "between members": (1536, 1),
        "before the end mark": (2560, 2),
    }[cut]
    path.write_bytes(whole[:at])
    os.utime(path, (1_700_000_000, 1_700_000_000))
    found = index(path)
    assert (len(found.members), found.num_read) == (num, num)
    assert "it was cut" in found.damage
    assert f"the {num} members before are used" in caplog.text

    path.write_bytes(whole)
    os.utime(path, (1_700_000_100, 1_700_000_100))
    found = index(path)
    assert (found.damage, found.num_read) == ("", 2 - num)
    assert read_back(path, found) == dict(FILES[:2])


@pytest.mark.parametrize(
    ("spoil", "damage"),
    [
        (lambda data: data[:1536] + b"?" * 512 + data[2048:], "expected a header at byte 1536"),
        (lambda data: data[:1536] + bytes(len(data) - 1536) + b"more", "expected the end at byte 1536"),
        (lambda data: data[:1536] + bytes(2 << 20), "expected the end at byte 1536"),
        (lambda data: data[:1536] + data[1536:1660] + b"zzzz" + data[1664:], "expected a header at byte 1536"),
    ],
)
def test_damage_in_the_middle_ends_the_walk_and_is_told(tmp_path: Path, spoil: Any, damage: str) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    path.write_bytes(spoil(path.read_bytes()))
    found = index(path)
    assert list(read_back(path, found)) == ["audio/a.flac"]
    assert damage in found.damage


@pytest.mark.parametrize("size", [0, 512, 10240])
def test_an_empty_tar_is_damage_too(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(size))
    assert f"found {size} bytes" in index(tmp_path / "a.tar").damage


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x1f\x8b" + bytes(600), "gzip-compressed data"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!doctype html>" * 50, "something else"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(CorpusError, match=rf"a\.tar: expected a tar file, uncompressed, found {found}"):
        index(tmp_path / "a.tar")


def test_a_tar_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(CorpusError, match=r"a\.tar: expected a tar file that can be read, found Is a directory"):
        index(tmp_path / "a.tar")


def test_one_broken_tar_does_not_undo_the_reading_of_another(tmp_path: Path) -> None:
    good, bad = write_tar(tmp_path / "a.tar", *FILES), tmp_path / "b.tar"
    bad.write_bytes(b"no tar" * 200)
    with pytest.raises(CorpusError, match=r"b\.tar"):
        index_tars([good, bad], tmp_path / "content.sqlite")
    assert index(good).num_read == 0


# the memo


def test_an_unchanged_tar_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES, special("link", tarfile.SYMTYPE, "x"))
    first = index(path)
    assert first.num_read == 3
    monkeypatch.setattr(tars, "Walk", None)
    again = index(path)
    assert (again.num_read, again.refused, again.damage) == (0, first.refused, "")
    assert again.members.equals(first.members)


def test_of_an_appended_tar_only_what_is_new_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    index(path)
    write_tar(path, ("audio/d.flac", b"d"), mode="a")
    os.utime(path, (1_700_000_100, 1_700_000_100))
    found = index(path)
    assert found.num_read == 4  # tar fills up to 10 KiB: by its size it has not grown, and could be another
    assert read_back(path, found) == dict(FILES) | {"audio/d.flac": b"d"}
    write_tar(path, ("audio/e.flac", bytes(20000)), mode="a")
    os.utime(path, (1_700_000_200, 1_700_000_200))
    assert index(path).num_read == 1


def test_a_longer_tar_with_other_headers_is_read_in_full(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    index(path)
    write_tar(path, ("audio/a.flac", b"A" * 1001), *FILES[1:], ("audio/d.flac", bytes(20000)))
    found = index(path)
    assert found.num_read == 4
    assert read_back(path, found)["audio/a.flac"] == b"A" * 1001


def test_a_killed_run_keeps_what_it_had_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    monkeypatch.setattr(tars, "_SECONDS_BETWEEN_SAVES", -1.0)
    digest = tars._digest

    def die_at_the_last(file: Any, path: Path, member: Any) -> str:
        if member.name == "audio/c.flac":
            raise KeyboardInterrupt
        return digest(file, path, member)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "_digest", die_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            index(path)
    found = index(path)
    assert found.num_read == 1
    assert read_back(path, found) == dict(FILES)


def test_a_tar_that_has_only_just_changed_is_read_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    os.utime(path)
    assert [index(path).num_read, index(path).num_read] == [3, 3]


def test_a_member_that_could_not_be_read_is_read_by_the_next_run_though_this_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved on the way holds no digest for it, and the next run once took that for all that can be known."""
    path = write_tar(tmp_path / "a.tar", *FILES)
    monkeypatch.setattr(tars, "_SECONDS_BETWEEN_SAVES", -1.0)
    digest = tars._digest

    def fail_and_die(file: Any, path: Path, member: Any) -> str:
        if member.name == "audio/c.flac":
            raise KeyboardInterrupt
        return "" if member.name == "audio/a.flac" else digest(file, path, member)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "_digest", fail_and_die)
        with pytest.raises(KeyboardInterrupt):
            index(path)
    assert read_back(path, index(path)) == dict(FILES)
    assert all(index(path).members["digest"].to_pylist())


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)
    expected = index(path).members.to_pylist()
    with sqlite3.connect(tmp_path / "content.sqlite") as store:
        (blob,) = store.execute("SELECT entries FROM tar_files").fetchone()
        flipped = bytearray(blob)
        flipped[len(flipped) // 2] ^= 1
        store.execute("UPDATE tar_files SET entries = ?", (bytes(flipped),))
    again = index(path)
    assert (again.num_read, again.members.to_pylist()) == (3, expected)


def test_a_member_that_cannot_be_read_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", *FILES)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size == 1000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    data = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r": Broken(data))
        caplog.set_level(logging.WARNING)
        assert index(path).members["digest"].to_pylist()[0] == ""
    assert "audio/a.flac cannot be read" in caplog.text
    assert index(path).num_read == 3
