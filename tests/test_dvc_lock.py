"""Entries of dvc.lock replaced as text: the file is the one that DVC itself prints."""

from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml

from tools.dvc_lock import merge_entry


def lock(**stages: Any) -> str:
    return str(dumps_yaml({"schema": "2.0", "stages": stages}))


# What ruamel prints on several lines, in quotes, or as a block.
ENTRIES = {
    "plain": {"cmd": "echo", "outs": [{"path": "a", "md5": "0" * 32, "size": 1}]},
    "long@a-1": {"cmd": "python -m stages.train " + "--option value " * 20, "params": {"params.yaml": {"a.b": [1, 1e-3]}}},
    "block": {"cmd": "echo 1\necho 2\n\necho 3\n", "deps": [{"path": "x: y"}]},
    "quotes": {"cmd": "echo '  a:'  # \"b\"\\", "params": {"params.yaml": {"empty": "", "none": None, "list": []}}},
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_come_and_go_as_dvc_prints_them(name: str) -> None:
    names = list(ENTRIES)
    later = names[names.index(name) + 1 :]
    without = lock(**{other: entry for other, entry in ENTRIES.items() if other != name})
    alone = lock(**{name: ENTRIES[name]})
    assert merge_entry(without, alone, later) == lock(**ENTRIES)
    changed = {**ENTRIES, name: {"cmd": "another"}}
    assert merge_entry(lock(**changed), alone, []) == lock(**ENTRIES)
    assert merge_entry(lock(**ENTRIES), lock(**{name: changed[name]}), later) == lock(**changed)


def test_names_that_need_quotes_are_found() -> None:
    assert merge_entry(lock(**{"1": {"cmd": "a"}}), lock(**{"1": {"cmd": "b"}}), []) == lock(**{"1": {"cmd": "b"}})


@pytest.mark.parametrize(
    "text",
    [
        "stages: {}\nschema: '2.0'\n",
        lock(a={"cmd": "a"}) + "datasets:\n- name: x\n",
        lock(a={"cmd": "a"}) + "  # by hand\n",
        lock(a={"cmd": "a"}).rstrip("\n"),
        lock(a={"cmd": "a"}).replace("    cmd", "<<<<<<< HEAD\n    cmd"),
        lock(**{"a" * 200: {"cmd": "a"}}),
    ],
    ids=["another head", "datasets", "a comment", "cut off", "a conflict", "a key on a line of its own"],
)
def test_what_dvc_would_not_print_is_left_to_dvc(text: str) -> None:
    assert merge_entry(text, lock(b={"cmd": "b"}), []) is None
