"""Plan of a run: why stages are stale, from what DVC and the stage `code` say, and how amounts are spelled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tools import plan
from tools.plan import StagePlan, plan_table


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], set()),
        (["always changed"], set()),
        (["changed command"], {"changed command"}),
        (["always changed", "changed command"], {"changed command"}),
        ([{"changed outs": {"data/splits/1.parquet": "deleted"}}], {"output missing or changed"}),
        ([{"changed deps": {"data/clips.parquet": "modified"}}], {"input"}),
        ([{"changed deps": {"data/clips.parquet": "new"}}], {"never run"}),
        ([{"changed deps": {"code/split": "new"}}], {"never run"}),
        ([{"changed deps": {"codebook/split": "modified"}}], {"input"}),
        (
            [{"changed deps": {"params.yaml": {"split": "modified", "corpus.kind": "new"}}}],
            {"param split", "param corpus.kind"},
        ),
        (
            [
                {"changed deps": {"data/clips.parquet": "modified", "params.yaml": {"split": "modified"}}},
                {"changed outs": {"data/splits/1.parquet": "modified"}},
            ],
            {"input", "param split", "output missing or changed"},
        ),
        # What never ran has every reason at once: one says it all.
        (
            [
                {"changed deps": {"params.yaml": {"split": "new"}, "data/clips.parquet": "deleted"}},
                {"changed outs": {"data/splits/1.parquet": "deleted"}},
            ],
            {"never run"},
        ),
    ],
)
def test_reasons_are_those_that_dvc_names(found: list[Any], expected: set[str]) -> None:
    assert plan._classify(found, {}) == expected


BEFORE = {
    "code": "a",
    "packages": {"torch": "2.11.0", "numpy": "2.0"},
    "settings": {"train.epochs": 3, "train.seed": 1},
}


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in a folder whose earlier outcome of `code/train/ast` is BEFORE; return its MD5 digest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan.code, "outcomes", lambda: tmp_path / "outcomes")
    content = json.dumps(BEFORE)
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes" / "one.json").write_text(json.dumps({"train/ast": content}))
    return md5(content)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"code": "b"}, {"code"}),
        ({"packages": {"torch": "2.12.0", "numpy": "2.0"}}, {"release of torch"}),
        ({"packages": {"torch": "2.11.0"}}, {"release of numpy"}),
        ({"packages": BEFORE["packages"] | {"scipy": "1.14"}}, {"release of scipy"}),  # type: ignore[operator]
        ({"settings": {"train.epochs": 4, "train.seed": 1}}, {"param train.epochs"}),
        ({"settings": {"train.epochs": 3}}, {"param train.seed"}),
        ({"settings": BEFORE["settings"] | {"train.noise": 0}}, {"param train.noise"}),  # type: ignore[operator]
        ({"code": "b", "settings": {}}, {"code", "param train.epochs", "param train.seed"}),
    ],
)
def test_a_change_of_code_is_told_from_one_of_settings_and_of_packages(
    changes: dict[str, Any], expected: set[str], recorded: str
) -> None:
    path = Path("code/train/ast")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(BEFORE | changes))
    found: list[Any] = [{"changed deps": {"code/train/ast": "modified"}}]
    assert plan._classify(found, {"code/train/ast": recorded}) == expected
    assert plan._classify(found, {"code/train/ast": md5("forgotten")}) == {"code or settings"}
    assert plan._classify(found, {}) == {"code or settings"}


def test_an_output_that_stays_as_it_is_reruns_nothing() -> None:
    frames, tokens = Path("data/spectrogram"), Path("data/tokens/kmeans/1.parquet")
    metadata = "data/spectrogram/frames.zarr/zarr.json"
    assert plan._reads([metadata], [frames], set())
    assert not plan._reads([metadata], [frames], {Path(metadata)})
    assert plan._reads([metadata, "data/spectrogram"], [frames], {Path(metadata)})
    assert plan._reads(["code/report", "data/tokens"], [tokens], set())  # a folder that is read whole
    assert not plan._reads(["data/tokens/kmeans/2.parquet"], [tokens], set())


def test_stages_come_after_what_they_depend_on() -> None:
    before = {
        "corpus": set(),
        "split": {"corpus"},
        "spectrogram": {"corpus"},
        "train": {"corpus", "split", "spectrogram"},
    }
    assert {name: plan._depth(name, before) for name in before} == {
        "corpus": 1,
        "split": 2,
        "spectrogram": 2,
        "train": 3,
    }


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (150, "2 min"), (5340, "89 min"), (5400, "1.5 h"), (9000, "2.5 h")],
)
def test_times_are_spelled_in_their_unit(seconds: float, expected: str) -> None:
    assert plan._spell_time(seconds) == expected


def rows(*plans: StagePlan) -> list[list[str]]:
    columns = plan_table(list(plans)).columns
    return [list(map(str, row)) for row in zip(*(column.cells for column in columns), strict=True)]


def test_the_table_counts_items_shards_and_clips() -> None:
    fresh = StagePlan("split", items=5)
    sharded = StagePlan("spectrogram", items=1, stale=1, shards=7, reused=4, clips=1200, seconds=90.0, size=4096)
    sharded.reasons.update({"input": 2, "code": 1})
    unknown = StagePlan("train", items=3, stale=2, seconds=None)
    unknown.reasons.update(["never run", "never run"])
    assert rows(fresh, sharded, unknown) == [
        ["split", "0 of 5", "", "", "", "", "-", ""],
        ["spectrogram", "1 of 1", "4", "3", "1,200", "input (2), code", "2 min", "4,096"],
        ["train", "2 of 3", "", "", "", "never run (2)", "not measured yet", ""],
    ]


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"seconds": "?"}'])
def test_a_stage_without_a_report_was_never_measured(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    assert plan._last_seconds(path) is None


def test_a_stage_takes_as_long_as_last_time(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"seconds": 12.5}')
    assert plan._last_seconds(path) == 12.5
