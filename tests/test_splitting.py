import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, make_duplicates

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.corpora.splitting import (
    SplitParams,
    assign_roles,
    check_roles,
    describe_rule,
    fold_names,
    inner_fold_names,
    outer_fold,
)
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params
from stages import split as split_stage

EMPTY_FILE = "e3b0c44298fc1c149afbf4c8996fb924"  # the digest of no bytes


def params(num_folds: int = 5, validation_fraction: float = 0.0, seed: int = 0) -> SplitParams:
    return SplitParams(
        num_folds=num_folds, validation_fraction=validation_fraction, seed=seed, near_duplicates="report"
    )


def manifest(folder: Path, clips: list[dict[str, Any]], num_classes: int = 2) -> Table:
    """Write and open a manifest; a clip says what matters of: labels, group, fold, content."""
    rows = [
        {
            "clip_id": f"{number:04d}",
            "source": f"{number}.wav",
            "member": "",
            "offset": 0,
            "size": 0,
            "start": 0.0,
            "duration": 0.0,
            "labels": [number % num_classes],
            "group": f"group {number}",
            "fold": "",
            "content": f"{number:032x}",
        }
        | clip
        for number, clip in enumerate(clips)
    ]
    metadata = {
        "corpus": "test",
        "classes": [f"class {i}" for i in range(num_classes)],
        "label_kind": "many",
        "licence": "",
    }
    path = folder / "clips.parquet"
    CLIPS.write(path, {name: [row[name] for row in rows] for name in CLIPS.columns}, metadata)
    return open_clips(path)


def published(folds: str, num_classes: int = 2) -> list[dict[str, Any]]:
    """One clip of every class for each letter of `folds`."""
    return [{"fold": fold, "labels": [target]} for fold in folds for target in range(num_classes)]


# published folds and roles


def test_a_published_fold_is_the_test_part_of_its_turn(tmp_path: Path) -> None:
    clips = manifest(tmp_path, published("12312"))
    assert fold_names(clips, params()) == ["1", "2", "3"]
    for fold in "123":
        roles = assign_roles(clips, fold, params(seed=int(fold)))
        assert roles == ["test" if own == fold else "train" for own in clips.list("fold")]
    assert describe_rule(clips, params()) == "published folds"


def test_folds_are_listed_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{"fold": fold} for fold in ("10", "9", "b", "1", "a")])
    assert fold_names(clips, params()) == ["1", "9", "10", "a", "b"]


def test_published_roles_make_the_official_fold(tmp_path: Path) -> None:
    names = ["train", "train", "Validation", "val", "test", "eval"]
    clips = manifest(tmp_path, [{"fold": name} for name in names])
    assert fold_names(clips, params()) == ["official"]
    assert assign_roles(clips, "official", params()) == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert describe_rule(clips, params()) == "published roles"


def test_an_unknown_fold_is_named_with_the_known_ones(tmp_path: Path) -> None:
    clips = manifest(tmp_path, published("12"))
    with pytest.raises(
        CorpusError, match=r"clips\.parquet: expected one of the folds 1, 2 in experiment\.folds, found 3"
    ):
        assign_roles(clips, "3", params())


@pytest.mark.parametrize(
    ("fold", "expected"),
    [
        ("1", ("1", 0)),
        ("1-1", ("1", 1)),
        ("1-5", ("1", 5)),
        ("1-0", ("1-0", 0)),
        ("1-6", ("1-6", 0)),  # of five inner folds
        ("1-b", ("1-b", 0)),
        ("a-2", ("a-2", 0)),  # a fold by that name
        ("a-2-3", ("a-2", 3)),
    ],
)
def test_an_inner_fold_is_named_by_its_fold_and_its_number(fold: str, expected: tuple[str, int]) -> None:
    assert outer_fold(fold, ["1", "a-2"], 5) == expected
    assert inner_fold_names("a-2", 3) == ["a-2-1", "a-2-2", "a-2-3"]


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (["train", "1", "1"], "found 1 (2 clips), train (1 clips)"),
        (["1", "2", ""], "found nothing (1 clips), 1 (1 clips), 2 (1 clips)"),
    ],
)
def test_a_fold_column_that_means_several_things_is_refused(tmp_path: Path, folds: list[str], message: str) -> None:
    clips = manifest(tmp_path, [{"fold": fold} for fold in folds])
    with pytest.raises(CorpusError, match=re.escape(message)):
        assign_roles(clips, "1", params())


def test_published_validation_clips_are_not_drawn_again(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{"fold": f} for f in ("train", "train", "validation", "test", "test")])
    with pytest.raises(ParamsError, match=r"split\.validation_fraction: expected 0, .* found 0\.2"):
        assign_roles(clips, "official", params(validation_fraction=0.2))


# drawn folds


def groups_of(seed: int, num_clips: int, num_classes: int, *, several: bool = False) -> list[dict[str, Any]]:
    """Clips in groups of one to four; with `several`, of one to three classes each."""
    chance = random.Random(seed)
    clips: list[dict[str, Any]] = []
    while len(clips) < num_clips:
        target = chance.randrange(num_classes)
        for _ in range(chance.randint(1, 4)):
            more = chance.sample(range(num_classes), chance.randint(0, 2)) if several else []
            clips.append({"labels": sorted({target, *more}), "group": f"recording {target} {len(clips)}"})
            clips[-1]["group"] = clips[-2]["group"] if len(clips) > 1 and _ else clips[-1]["group"]
    return clips


@pytest.mark.parametrize("several", [False, True])
def test_drawn_folds_cover_all_clips_keep_groups_whole_and_classes_even(tmp_path: Path, several: bool) -> None:
    clips = manifest(tmp_path, groups_of(0, 400, 4, several=several), num_classes=4)
    names = fold_names(clips, params())
    assert names == ["1", "2", "3", "4", "5"]
    tested: Counter[str] = Counter()
    per_class: dict[int, list[int]] = defaultdict(list)
    for fold in names:
        roles = assign_roles(clips, fold, params())  # checks the groups
        test = [row for row, role in enumerate(roles) if role == "test"]
        tested.update(clips.list("clip_id")[row] for row in test)
        counts = Counter(target for row in test for target in clips.list("labels")[row])
        for target in range(4):
            per_class[target].append(counts[target])
    assert tested == dict.fromkeys(clips.list("clip_id"), 1)
    for counts_of_class in per_class.values():
        spread = max(counts_of_class) - min(counts_of_class)
        assert spread <= (0.25 * max(counts_of_class) if several else 1)


def test_the_draw_follows_its_seed_and_the_number_of_folds(tmp_path: Path) -> None:
    clips = manifest(tmp_path, groups_of(1, 60, 2))
    assert assign_roles(clips, "1", params()) == assign_roles(clips, "1", params())
    assert assign_roles(clips, "1", params()) != assign_roles(clips, "1", params(seed=1))
    assert assign_roles(clips, "1", params(num_folds=3)).count("test") in range(18, 23)
    assert describe_rule(clips, params(num_folds=3)) == "3 folds drawn by group"


def test_copies_of_one_file_are_drawn_into_one_fold(tmp_path: Path) -> None:
    # a - b - c hang together by their audio, pair by pair, though their groups differ
    rows = [{} for _ in range(24)]
    rows[3] = {"content": "x", "group": "a"}
    rows[8] = {"content": "x", "group": "b"}
    rows[13] = {"content": "y", "group": "b"}
    rows[18] = {"content": "y", "group": "c"}
    clips = manifest(tmp_path, rows)
    for fold in fold_names(clips, params()):
        roles = assign_roles(clips, fold, params())
        assert len({roles[row] for row in (3, 8, 13, 18)}) == 1


def test_empty_and_missing_files_are_not_copies_of_each_other(tmp_path: Path) -> None:
    rows = [{"content": ""} for _ in range(6)] + [{"content": EMPTY_FILE} for _ in range(6)] + [{} for _ in range(20)]
    clips = manifest(tmp_path, rows)
    counts = [assign_roles(clips, fold, params())[:12].count("test") for fold in fold_names(clips, params())]
    assert sum(counts) == 12
    assert max(counts) < 6


# validation


def test_validation_clips_come_from_the_training_clips_by_group(tmp_path: Path) -> None:
    rows = [row | {"fold": f"{1 + int(row['group'].split()[-1]) % 5}"} for row in groups_of(2, 400, 4)]
    clips = manifest(tmp_path, rows, num_classes=4)
    plain = assign_roles(clips, "2", params())
    drawn = assign_roles(clips, "2", params(validation_fraction=0.2))
    assert [role == "test" for role in plain] == [role == "test" for role in drawn]
    share = drawn.count("validation") / plain.count("train")
    assert 0.15 < share < 0.25
    for target in range(4):
        members = [role for role, labels in zip(drawn, clips.list("labels"), strict=True) if labels == [target]]
        assert members.count("validation") >= 10
    assert drawn != assign_roles(clips, "2", params(validation_fraction=0.2, seed=1))
    assert describe_rule(clips, params(validation_fraction=0.2)).endswith(
        "0.2 of the training clips drawn for validation by group"
    )


def test_added_test_clips_leave_the_roles_of_all_others(tmp_path: Path) -> None:
    rows = [row | {"fold": f"{1 + int(row['group'].split()[-1]) % 5}"} for row in groups_of(2, 400, 4)]
    added = [{"labels": [number % 4], "group": f"added {number}", "fold": "2"} for number in range(8)]
    drawing = params(validation_fraction=0.2)
    before = assign_roles(manifest(tmp_path, rows, num_classes=4), "2", drawing)
    after = assign_roles(manifest(tmp_path, [*added, *rows], num_classes=4), "2", drawing)
    assert after == ["test"] * len(added) + before


def test_a_class_of_one_recording_stays_in_training(tmp_path: Path) -> None:
    rows = [{"labels": [0], "fold": "1"}, {"labels": [1], "fold": "1"}]
    rows += [{"labels": [0], "fold": "2"} for _ in range(20)] + [{"labels": [1], "fold": "2", "group": "g"}] * 3
    clips = manifest(tmp_path, rows)
    roles = assign_roles(clips, "1", params(validation_fraction=0.3))
    assert roles[-3:] == ["train"] * 3


# poison: roles see nothing but the manifest's own metadata about a clip


def test_roles_do_not_depend_on_what_the_audio_holds(tmp_path: Path) -> None:
    rows = groups_of(3, 100, 2)
    clips = manifest(tmp_path, rows)
    changed = manifest(tmp_path, [row | {"content": f"poison {number}"} for number, row in enumerate(rows)])
    for fold in fold_names(clips, params()):
        wish = params(validation_fraction=0.1)
        assert assign_roles(clips, fold, wish) == assign_roles(changed, fold, wish)


# leaks


def test_every_leak_and_gap_is_named_at_once(tmp_path: Path) -> None:
    clips = manifest(
        tmp_path,
        [
            {"fold": "1", "labels": [0], "group": "song"},
            {"fold": "2", "labels": [0], "group": "song"},
            {"fold": "1", "labels": [1]},
            {"fold": "2", "labels": [0]},
            {"fold": "2", "labels": [2]},
        ],
        num_classes=4,
    )
    with pytest.raises(CorpusError) as error:
        assign_roles(clips, "1", params())
    message = str(error.value)
    assert "fold 1: groups in two roles (1): song (test: 0000, train: 0001)" in message
    assert "classes without a training clip (2): class 1, class 3" in message
    assert "classes without a test clip (2): class 2, class 3" in message


def test_a_copy_of_a_test_clip_is_excluded_from_training(tmp_path: Path) -> None:
    """AudioSet's training and evaluation sets hold clips with the same bytes, silence among them."""
    rows: list[dict[str, Any]] = [{"fold": fold} for fold in ("train", "val", "test") for _ in range(3)]
    rows[0] |= {"content": "same", "group": "g"}
    rows[1] |= {"content": "same"}
    rows[6] |= {"content": "same", "group": "g"}  # a group is whole again once its copy is gone
    rows[2] |= {"content": "other"}
    rows[3] |= {"content": "other"}
    rows[7] |= {"content": "twin"}
    rows[8] |= {"content": "twin"}
    rows += [{"fold": "train", "labels": [0, 1]}]
    clips = manifest(tmp_path, rows)
    expected = ["excluded"] * 3 + ["validation"] * 3 + ["test"] * 3 + ["train"]
    assert assign_roles(clips, "official", params()) == expected


def test_many_leaks_are_counted(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{"fold": fold, "group": f"g{i:02}"} for fold in "12" for i in range(14)])
    with pytest.raises(CorpusError, match=r"groups in two roles \(14\): g00 .* g09 \(.*\), and 4 more"):
        assign_roles(clips, "1", params())


def test_drawn_validation_clips_cannot_leak_either(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{"group": "g"}, {"group": "g"}, {}, {}])
    with pytest.raises(CorpusError, match=r"groups in two roles \(1\): g \(train: 0000, validation: 0001\)"):
        check_roles(clips, ["train", "validation", "test", "test"], "1")


def test_a_class_whose_files_are_all_missing_is_a_class_without_clips(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{"fold": "1"}, {"fold": "1"}, {"fold": "2"}, {"fold": "2", "content": ""}])
    with pytest.raises(CorpusError, match=r"classes without a training clip \(1\): class 1"):
        assign_roles(clips, "1", params())


def test_too_few_recordings_for_the_folds_are_named(tmp_path: Path) -> None:
    clips = manifest(tmp_path, [{} for _ in range(6)])
    with pytest.raises(CorpusError, match=r"fold 5: classes without a test clip"):
        assign_roles(clips, "5", params())


# params and stage


@pytest.mark.parametrize(
    ("key", "value"), [("num_folds", 1), ("validation_fraction", 1.0), ("validation_fraction", -0.1), ("seed", -1)]
)
def test_a_setting_out_of_range_is_named(key: str, value: float) -> None:
    values = {"num_folds": 5, "validation_fraction": 0.0, "seed": 0, "near_duplicates": "report"} | {key: value}
    with pytest.raises(ParamsError, match=rf"split\.{key}: .* found {value}"):
        validate_params(SplitParams, values, "split")


def test_the_stage_writes_roles_rule_and_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips = manifest(tmp_path, groups_of(4, 60, 2))
    none = make_duplicates(tmp_path / "duplicates.parquet")
    for name in ("a.parquet", "b.parquet"):
        split_stage.run(params(validation_fraction=0.1), clips.path, none, tmp_path / name, "3")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    split = open_split(tmp_path / "a.parquet")
    assert split.metadata == {
        "fold": "3",
        "seed": 0,
        "rule": "5 folds drawn by group; 0.1 of the training clips drawn for validation by group",
        "settings": {"split": {"num_folds": 5, "seed": 0, "validation_fraction": 0.1, "near_duplicates": "report"}},
    }
    assert sorted(clips_of(split, "train", "validation", "test")) == clips.list("clip_id")
    assert (tmp_path / "results" / "stages" / "split-3.json").exists()


def test_the_program_prints_a_mistake_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "split: {num_folds: 5, validation_fraction: 0.0, seed: 0, near_duplicates: report}\n"
    )
    (tmp_path / "data").mkdir()
    manifest(tmp_path, published("12")).path.rename(tmp_path / "data/clips.parquet")
    make_duplicates(tmp_path / "data/duplicates.parquet")
    command = [sys.executable, "-m", "stages.split", "7"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "expected one of the folds 1, 2 in experiment.folds, found 7" in done.stderr
    assert "Traceback" not in done.stderr
