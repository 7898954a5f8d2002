"""Expanding tars: what comes out, what never does, and what a second run has left to do."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from test_audioset import TRAIN, make_tars, make_tree
from test_tars import special, write_tar

import tools.expand_audioset as tool
from pipeline.errors import CorpusError, SonolexError
from tools.expand_audioset import expand, find_tars, main, results_table


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tars_become_the_folders_that_the_corpus_reads(tmp_path: Path) -> None:
    root = make_tars(tmp_path / "tars")
    (root / "data" / "unbal_train00.tar").unlink()
    done = expand(find_tars([root / "data"]), tmp_path / "out")
    assert [(d.written, d.there, d.repeated, d.not_audio) for d in done] == [(3, 0, 0, 1), (2, 0, 1, 0), (1, 0, 0, 0)]
    found = files_below(tmp_path / "out")
    assert found.pop("bal_train/un/unlisted_00.flac") == b"?"
    tree = make_tree(tmp_path / "tree")
    assert found == {name: data for name, data in files_below(tree).items() if name.endswith(".flac")}


def test_a_second_run_writes_only_what_is_missing_or_not_whole(tmp_path: Path) -> None:
    tars, out = find_tars([make_tars(tmp_path / "tars") / "data"]), tmp_path / "out"
    expand(tars, out)
    before = files_below(out)
    first, second = (out / "bal_train" / video[:2] / f"{video}.flac" for video in TRAIN[:2])
    kept = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:100])
    done = expand(tars, out)
    assert (sum(d.written for d in done), sum(d.there for d in done)) == (1, 6)
    assert files_below(out) == before
    assert first.stat().st_mtime_ns == kept


def test_a_killed_run_leaves_no_file_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars, out = find_tars([make_tars(tmp_path / "tars") / "data"]), tmp_path / "out"
    replace = os.replace

    def die_at_the_third(source: Any, target: Any) -> None:
        if Path(target).stem == TRAIN[2]:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(tool.os, "replace", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            expand(tars, out)
    assert sorted(path.stem for path in out.rglob("*.flac")) == sorted(TRAIN[:2])
    done = expand(tars, out)
    assert (done[0].written, done[0].there) == (1, 2)
    assert not list(out.rglob(".*"))


def test_a_poisoned_tar_writes_nothing_outside_and_is_told_at_the_end(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    path = write_tar(
        tmp_path / "bal_train00.tar",
        ("../../outside/aaaaaaaaaaa.flac", b"1"),
        (f"{outside}/bbbbbbbbbbb.flac", b"2"),
        special("ccccccccccc.flac", b"2", "/etc/passwd"),
        special("ddddddddddd.flac", b"1", "/etc/passwd"),
        (f"audio/{TRAIN[0]}.flac", b"good"),
    )
    cut = write_tar(tmp_path / "eval00.tar", ("audio/eeeeeeeeeee.flac", b"x" * 600), ("fffffffffff.flac", b"y" * 600))
    cut.write_bytes(cut.read_bytes()[:2300])
    (tmp_path / "eval01.tar").write_bytes(b"no tar at all")
    with pytest.raises(SonolexError) as error:
        main([path, cut, tmp_path / "eval01.tar"], tmp_path / "out")
    message = str(error.value)
    assert "'../../outside/aaaaaaaaaaa.flac' (an unsafe name)" in message
    assert f"'{outside}/bbbbbbbbbbb.flac' (an unsafe name), 'ccccccccccc.flac' (a link)" in message
    assert re.search(
        r"eval00\.tar: expected 600 bytes of fffffffffff\.flac .*: it was cut; the members before", message
    )
    assert "eval01.tar: expected a tar file, uncompressed, found something else" in message
    assert files_below(tmp_path / "out") == {
        f"bal_train/--/{TRAIN[0]}.flac": b"good",
        "eval/ee/eeeeeeeeeee.flac": b"x" * 600,
    }
    assert not outside.exists()


def test_a_tar_of_no_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    good, odd = make_tars(tmp_path / "tars") / "data" / "eval00.tar", write_tar(tmp_path / "train.tar", ("a", b""))
    with pytest.raises(
        CorpusError, match=r"train\.tar: expected <set>\.tar or <set><number>\.tar, with a set of bal_train"
    ):
        find_tars([good, odd])
    with pytest.raises(CorpusError, match="nowhere: expected a tar file or a folder that holds some, found none"):
        find_tars([tmp_path / "nowhere"])


def test_the_table_adds_up(tmp_path: Path) -> None:
    done = expand(find_tars([make_tars(tmp_path / "tars") / "data"]), tmp_path / "out")
    table = results_table(done)
    assert list(table.columns[1].cells)[-1] == str(sum(d.written for d in done))
