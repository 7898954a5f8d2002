"""A check is made again when one of its files changed, and not otherwise."""

from pathlib import Path

import pytest

from pipeline.errors import ParamsError
from pipeline.execution.checked import check_once


def test_a_check_is_made_once_for_the_same_files(tmp_path: Path) -> None:
    files, note = [tmp_path / "params.yaml", tmp_path / "code.py"], tmp_path / "notes" / "checked"
    calls: list[int] = []
    files[0].write_text("a: 1")

    def checked() -> bool:
        return check_once(lambda: calls.append(1), files, note)

    assert checked()
    assert not checked()
    files[1].write_text("x = 1")
    assert checked()
    files[0].write_text("a: 2")
    assert checked()
    assert not checked()
    assert len(calls) == 3


def test_a_check_that_failed_is_made_again(tmp_path: Path) -> None:
    def fail() -> None:
        raise ParamsError("params.yaml: a: expected 1, found 2")

    for _ in range(2):
        with pytest.raises(ParamsError):
            check_once(fail, [tmp_path / "params.yaml"], tmp_path / "checked")
