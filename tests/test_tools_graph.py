"""`sonolex graph`: what it draws of recipes fits into 100 columns, and says what DVC says."""

import io
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from dvc.repo import Repo
from rich.console import Console
from test_repro import make_toy, stage, write_yaml

from pipeline.errors import SonolexError
from tools import graph
from tools.compose import compose, dump

TOY = {
    "last": stage("cat first second.* > last", "first", "second.a", "second.b", out="last"),
    "first": stage("echo first > first", out="first", params=["a"]),
    "second": {
        "matrix": {"of": "${names}", "size": [1]},
        **stage("cp first second.${item.of}", "first", out="second.${item.of}", params=["${item.of}"]),
    },
    "none": {"matrix": {"of": "${empty}"}, **stage("cp first none", "first", out="none")},
}
PARAMS: dict[str, Any] = {"names": ["a", "b"], "empty": [], "a": 1, "b": 1}


def draw(monkeypatch: pytest.MonkeyPatch, folder: Path, *, status: bool = False, mermaid: bool = False) -> str:
    monkeypatch.chdir(folder)
    console = Console(width=160, file=io.StringIO())
    graph.run(status=status, mermaid=mermaid, console=console)
    return console.file.getvalue()


def cells(drawn: str) -> list[list[str]]:
    """Return the rows of a drawing, each as its cells."""
    rows = [line.split("  ") for line in drawn.splitlines()[1:]]
    return [[cell.strip(" └├─│") for cell in row if cell.strip(" └├─│")] for row in rows]


@pytest.mark.parametrize(("recipe", "status"), [("demo", False), ("demo", True), ("leaderboard", False)])
def test_an_experiment_is_drawn_in_100_columns(
    recipe: str, status: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, mistakes = compose(recipe, ["report.attention=[ast]"], REPOSITORY / "recipes")
    assert not mistakes
    toy = make_toy(tmp_path / "toy", {})
    (toy / "params.yaml").write_text(dump(document))
    (toy / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    with Repo(str(toy)) as repo:
        groups = {stage.addressing.rpartition(":")[2].partition("@")[0] for stage in repo.index.stages}
    drawn = draw(monkeypatch, toy, status=status)
    assert max(map(len, drawn.splitlines())) <= 100
    names = [row[0] for row in cells(drawn) if row]
    assert groups <= set(names)
    assert names[:2] == ["code", "corpus"]
    assert names.index("report") > names.index("train_tokens") > names.index("tokenize")
    assert all(names.count(name) == 1 for name in groups)
    assert ("never run" in drawn) is status


def test_a_matrix_is_one_row_and_what_is_needed_through_others_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path / "toy", TOY, PARAMS)
    assert [line.rstrip() for line in draw(monkeypatch, toy).splitlines()] == [
        "stage       items  matrix  needs also",
        "first",
        "└─ second       2  of",
        "   └─ last",
        "",
        "of: a b",
        "size: 1",
        "not shown, since an axis is empty: none",
    ]
    assert draw(monkeypatch, toy, mermaid=True).splitlines() == [
        "flowchart LR",
        '    s0["last"]',
        '    s1["first"]',
        '    s2["second<br>2: of × size"]',
        "    s2 --> s0",
        "    s1 --> s2",
    ]


def test_states_are_dvcs_and_go_on_to_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy", TOY, PARAMS)
    never = [["first", "never run"], ["second", "2", "never run"], ["last", "never run"]]
    assert cells(draw(monkeypatch, toy, status=True)) == never
    monkeypatch.setenv("SHELL", "/bin/sh")
    with Repo(str(toy)) as repo:
        repo.reproduce()
    assert {row[-1] for row in cells(draw(monkeypatch, toy, status=True))} == {"up to date"}
    write_yaml(toy / "params.yaml", PARAMS | {"b": 2})
    found = [["first", "up to date"], ["second", "2", "1 stale, 1 up to date"], ["last", "follows"]]
    assert cells(draw(monkeypatch, toy, status=True)) == found
    write_yaml(toy / "params.yaml", PARAMS | {"names": ["a", "b", "a2"], "a2": 1, "a": 2})
    found[0][-1], found[1][1:] = "stale", ["3", "1 never run, 1 stale, 1 follows"]
    assert cells(draw(monkeypatch, toy, status=True)) == found


def test_groups_whose_items_need_each_other_are_drawn_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {
        "odd": {"foreach": {"1": "0", "3": "2"}, "do": stage("cp ${item} ${key}", "${item}", out="${key}")},
        "even": {"matrix": {"of": ["2"]}, **stage("cp 1 2", "1", out="2")},
    }
    toy = make_toy(tmp_path / "toy", stages)
    assert cells(draw(monkeypatch, toy))[:2] == [["odd", "2", "item"], ["even", "1"]]


def test_what_dvc_cannot_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy", {"bad": stage("echo ${nothing}", out="bad")})
    with pytest.raises(SonolexError, match=r"dvc: .*nothing"):
        draw(monkeypatch, toy)
