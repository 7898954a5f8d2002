"""The memo store: entries appear whole, damage is found, and it can be bounded."""

import errno
import functools
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from faults import forbidden
from rich.console import Console

from benchmarks.attack.bits import flip
from pipeline.artifacts.files import distrust
from pipeline.errors import ParamsError, SonolexError
from pipeline.execution import memo as memo_module
from pipeline.execution.housekeeping import MARK_SUFFIX, WORKSPACE_PREFIX, entries, plan_removal, remove
from pipeline.execution.memo import LostEntry, Memo, retry_lost
from pipeline.training.checkpoints import CHECKPOINTS
from tools.gc import parse_size, run

DAY = 86400
LARGE = bytes(2**20 + 1)  # a file that is believed by its time


def make_memo(root: Path, code: str = "one") -> Memo:
    return Memo(root, "work", params={"size": 1}, code=code)


def put(memo: Memo, name: str, content: bytes = b"x" * 100, age_days: float = 0.0) -> None:
    with memo.writing(name, clips=2, computed=1) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_bytes(content)
    times = (memo.path / name).stat().st_mtime - age_days * DAY
    os.utime(memo.path / name, (times, times))


def test_an_entry_is_found_by_name_under_its_version(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    assert memo.find("a") is None
    put(memo, "a")
    found = make_memo(tmp_path).find("a")
    assert found is not None
    assert (found.clips, found.computed, found.size) == (2, 1, 100)
    assert make_memo(tmp_path, "two").find("a") is None
    assert make_memo(tmp_path).names() == {"a"}


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)

    def fail() -> None:
        with memo.writing("a", clips=1, computed=1) as folder:
            (folder / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert memo.names() == set()
    assert [path.name for path in memo.path.iterdir()] == ["about.json"]


def test_two_that_write_the_same_entry_both_end_well(tmp_path: Path) -> None:
    first, second = make_memo(tmp_path), make_memo(tmp_path)
    with first.writing("a", clips=1, computed=1) as one, second.writing("a", clips=1, computed=1) as two:
        (one / "file").write_text("same")
        (two / "file").write_text("same")
    assert first.require("a").size == 4
    assert not list(tmp_path.rglob("*.partial"))


def test_an_entry_that_no_one_sees_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"expected the shard that a worker wrote, found none; .*`execution.memo`"):
        make_memo(tmp_path).require("a")


@pytest.mark.parametrize("damage", ["edit", "shorten", "delete"])
def test_an_entry_that_is_not_as_it_was_written_counts_as_none(tmp_path: Path, damage: str) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    file = memo.path / "a" / "part" / "file"
    file.chmod(0o644)
    if damage == "edit":
        file.write_bytes(b"y" * 100)
    elif damage == "shorten":
        file.write_bytes(b"x")
    else:
        file.unlink()
    assert memo.find("a") is None
    assert memo.names() == set()


def _flip(path: Path) -> None:
    flip(path, np.random.default_rng(0))


@pytest.mark.parametrize("file", ["entry.json", "part/file"])
def test_one_flipped_bit_with_the_time_kept_is_found(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    _flip(memo.path / "a" / file)
    assert memo.find("a") is None
    assert f"{memo.path / 'a'}: expected {file} as it was written, found it changed; computing it again" in caplog.text
    assert memo.names() == set()
    put(memo, "a")
    assert memo.find("a") is not None


@pytest.mark.parametrize("reader", ["a stage", "a reader of its artifact"])
def test_a_large_file_is_believed_by_its_time_until_somebody_reads_it(tmp_path: Path, reader: str) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a", LARGE)
    memo.require("a").link("part", tmp_path / "artifact")
    _flip(memo.path / "a" / "part" / "file")
    assert memo.find("a") is not None
    if reader == "a stage":
        assert memo.find_all(["a"], thorough=True) == {}
    else:
        distrust(tmp_path / "artifact")
        assert memo.find_all(["a"]) == {}


def test_what_is_damaged_or_gone_after_the_look_up_is_lost(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    for spoil in (_flip, Path.unlink):
        put(memo, "a")
        entry = memo.require("a")
        assert entry.read("part/file") == b"x" * 100
        spoil(memo.path / "a" / "part" / "file")
        with pytest.raises(LostEntry, match=r"a: expected part/file as it was written, found it (changed|missing)"):
            entry.read("part/file")
        assert memo.names() == set()
        with pytest.raises(LostEntry, match="missing"):
            entry.link("part", tmp_path / "artifact")


def test_copies_are_checked_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    memo = make_memo(tmp_path)
    put(memo, "a", LARGE)
    memo.require("a").link("part", tmp_path / "artifact")
    assert (tmp_path / "artifact" / "file").read_bytes() == LARGE
    _flip(memo.path / "a" / "part" / "file")
    with pytest.raises(LostEntry, match="found it changed"):
        memo.require("a").link("part", tmp_path / "again")


def test_a_lost_entry_is_computed_again_a_few_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = [LostEntry(tmp_path / str(number), "rows", "missing") for number in range(5)]

    def work() -> str:
        if lost:
            raise lost.pop()
        return "done"

    with pytest.raises(SonolexError, match=r"the last of 5 entries lost in one run; raise --max-size"):
        retry_lost(work)
    assert retry_lost(work) == "done"
    lost.append(LostEntry(tmp_path / "a", "rows", "missing"))
    assert retry_lost(work) == "done"
    assert f"{tmp_path / 'a'}: expected rows as it was written, found it missing; computing it again" in caplog.text


@pytest.mark.parametrize("file", ["entry.json", "part/file", "part"])
def test_what_may_not_be_read_is_an_error_and_stays(tmp_path: Path, file: str) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    with forbidden(memo.path / "a" / file):
        with pytest.raises(PermissionError, match=str(memo.path / "a")):
            memo.find("a")
        with pytest.raises(PermissionError, match=str(memo.path / "a")):
            plan_removal(tmp_path, max_bytes=None, max_days=None, thorough=True)
    assert memo.find("a") is not None


def test_a_new_entry_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    (memo.path / "a" / "entry.json").unlink()
    put(memo, "a", b"new")
    assert memo.require("a").read("part/file") == b"new"
    put(memo, "a", b"other")  # of a run that was slower: equal, were it not a test
    assert memo.require("a").read("part/file") == b"new"


def test_only_the_time_of_a_file_moved_and_the_entry_stays(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    os.utime(memo.path / "a" / "part" / "file", (0, 0))  # as a copy to another disk leaves it
    assert memo.find("a") is not None


def test_links_share_the_bytes(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    memo.require("a").link("part", tmp_path / "artifact")
    assert (tmp_path / "artifact" / "file").samefile(memo.path / "a" / "part" / "file")
    assert next(entries(tmp_path)).shared


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    for name, age in (("old", 3), ("older", 5), ("new", 0)):
        put(memo, name, age_days=age)
    memo.mark_used(["older"])
    removal = plan_removal(tmp_path, max_bytes=200, max_days=None, thorough=False)
    assert [kept.entry.path.name for kept in removal.entries] == ["old"]
    assert (removal.freed_bytes, removal.kept_bytes) == (100, 200)
    remove(removal)
    assert memo.names() == {"older", "new"}


def test_age_damage_and_left_overs(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "old", age_days=40)
    put(memo, "flipped", LARGE)
    put(memo, "good")
    file = memo.path / "flipped" / "part" / "file"
    _flip(file)
    partial = memo.path / ".a.host-1.abc.partial"
    partial.mkdir()
    os.utime(partial, (0, 0))
    assert plan_removal(tmp_path, max_bytes=None, max_days=None, thorough=False).entries == []
    removal = plan_removal(tmp_path, max_bytes=None, max_days=30, thorough=True)
    assert {kept.entry.path.name for kept in removal.entries} == {"old", "flipped"}
    assert removal.damaged == [str(file)]
    remove(removal)
    assert memo.names() == {"good"}
    assert not list(tmp_path.rglob("*.partial"))


def test_workspaces_of_killed_retrainings_go_with_age_and_what_they_link_to_stays(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "frames").mkdir(parents=True)
    (data / "frames" / "0").write_bytes(b"0" * 100)
    for name in (f"{WORKSPACE_PREFIX}ab12", "tmp_experiment_of_dvc"):
        workspace = tmp_path / "exps" / name
        workspace.mkdir(parents=True)
        (workspace / "frames").symlink_to(data / "frames")
        (workspace / "weights").write_bytes(b"0" * 5)
        os.utime(workspace, (0, 0))
    plan = functools.partial(plan_removal, tmp_path / "memo", max_bytes=0, thorough=False, workspaces=tmp_path / "exps")
    assert plan(max_days=None).left_over == []
    removal = remove(plan(max_days=30))
    assert [left.path.name for left in removal.left_over] == [f"{WORKSPACE_PREFIX}ab12"]
    assert [path.name for path in (tmp_path / "exps").iterdir()] == ["tmp_experiment_of_dvc"]
    assert removal.freed_bytes < 100
    assert (data / "frames" / "0").stat().st_size == 100


def test_checkpoints_and_marks_go_with_age_and_temporary_files_at_once(tmp_path: Path) -> None:
    state = tmp_path / CHECKPOINTS.parent
    old, new = (tmp_path / CHECKPOINTS / f"{name}.safetensors" for name in ("old", "new"))
    mark, partial = state / f"a{MARK_SUFFIX}", tmp_path / CHECKPOINTS / ".old.host-1.abc.partial"
    for path in (old, new, mark, partial, state / "content.sqlite"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, None if path == new else (0, 0))
    plan = functools.partial(plan_removal, tmp_path / "memo", max_bytes=0, thorough=False, state=state)
    assert [left.path for left in plan(max_days=None).left_over] == [partial]
    removal = plan(max_days=30)
    assert {left.path for left in removal.left_over} == {old, mark, partial}
    assert removal.freed_bytes == 30
    remove(removal)
    assert {path.name for path in state.rglob("*") if path.is_file()} == {"new.safetensors", "content.sqlite"}


def test_an_entry_that_comes_into_use_while_it_is_to_be_removed_stays(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "used", age_days=5)
    put(memo, "unused", age_days=5)
    removal = plan_removal(tmp_path, max_bytes=0, max_days=None, thorough=False)
    memo.mark_used(["used"])
    done = remove(removal)
    assert [kept.entry.path.name for kept in done.entries] == ["unused"]
    assert (done.freed_bytes, done.kept_bytes) == (100, 100)
    assert memo.names() == {"used"}


def test_an_entry_without_its_description_is_removed_as_damaged(tmp_path: Path) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    _flip(memo.path / "a" / "entry.json")
    removal = plan_removal(tmp_path, max_bytes=None, max_days=None, thorough=False)
    assert removal.damaged == [str(memo.path / "a" / "entry.json")]
    assert removal.freed_bytes == 100
    remove(removal)
    assert memo.names() == set()


def test_a_clean_up_beside_a_run_bears_entries_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = make_memo(tmp_path)
    put(memo, "a")
    put(memo, "b")
    read = memo_module.read_entry

    def vanish(path: Path) -> object:
        entry = read(path)
        memo.forget("a")
        return entry

    monkeypatch.setattr("pipeline.execution.housekeeping.read_entry", vanish)
    assert {kept.entry.path.name for kept in entries(tmp_path)} == {"b"}


def test_the_command_says_what_went_and_a_dry_run_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the project whose leftovers are removed
    memo = make_memo(tmp_path)
    put(memo, "a")
    for dry_run, tokens in ((True, "would free 100 bytes"), (False, "freed 100 bytes")):
        output = StringIO()
        console = Console(file=output, width=200)
        run(tmp_path, max_size="0", max_days=None, verify=False, dry_run=dry_run, console=console)
        assert tokens in output.getvalue()
        assert memo.names() == ({"a"} if dry_run else set())


@pytest.mark.parametrize(("text", "size"), [("20G", 20 * 10**9), ("1.5m", 1_500_000), ("0", 0), ("3 KB", 3000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["20 pounds", "20", "20B", "G"])
def test_a_size_without_a_unit_is_named(text: str) -> None:
    expected = "--max-size: expected a number with a unit, K, M, G or T, such as 20G"
    with pytest.raises(ParamsError, match=f"{expected}, found '{text}'"):
        parse_size(text)
