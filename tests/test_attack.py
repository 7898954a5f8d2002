"""The attack of benchmarks/attack in small: whatever is damaged or killed, the result is right or a named error."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from workspace import run

from benchmarks.attack import flips, kills, mutants
from benchmarks.attack.outcomes import Tally


def _require_none_silent(tallies: Sequence[Tally]) -> None:
    assert not [fault for tally in tallies for fault in tally.faults]


@pytest.mark.slow
def test_no_mutant_of_a_sound_is_silent(tmp_path: Path) -> None:
    tallies = mutants.attack(tmp_path, 200)
    _require_none_silent(tallies)
    assert sum(tally.counts.total() for tally in tallies) == 200
    for tally in tallies:
        checked = tally.kind.split()[1] in ("FLAC", "OGG")
        assert not (checked and tally.counts["unknowable"]), tally.row()


@pytest.mark.slow
@pytest.mark.parametrize("group", flips.GROUPS)
def test_no_flipped_bit_is_silent(group: str, finished: Path, tmp_path: Path) -> None:
    tallies = flips.attack(finished, tmp_path, flips.GROUPS[group], 30)
    _require_none_silent(tallies)
    assert sum(tally.counts.total() for tally in tallies) == 30
    if group != "artifacts":  # each of the others is a cache: what is damaged is made again
        assert all(set(tally.counts) == {"right"} for tally in tallies)


@pytest.mark.slow
def test_no_kill_of_a_stage_changes_a_byte(finished: Path, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(finished, tmp_path / "workspace", symlinks=True))
    tallies = kills.attack(
        workspace, tmp_path / "left", 5, lambda path: run(path, "dvc", "repro", "-q", "--no-run-cache")
    )
    _require_none_silent(tallies)
    assert {tally.counts["right"] for tally in tallies[:-1]} == {5}


@pytest.mark.parametrize(
    ("rows", "begun"),
    [(b"", True), (b"a,b\n", True), (b"a,b\n1", False), (b"a,b\n2,2\n", False), (b"a,b\n1,2\n", True)],
)
def test_a_killed_run_leaves_the_first_rows_of_its_curves(rows: bytes, begun: bool, tmp_path: Path) -> None:
    path = tmp_path / kills.CURVES
    path.write_bytes(rows)
    assert kills._is_begun(path, b"a,b\n1,2\n") == begun
