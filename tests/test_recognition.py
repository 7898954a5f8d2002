"""Layouts of corpora are recognised: published ones, tables, folders, names of files, text files beside them."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from conftest import make_wav_corpus
from layouts import WRITERS, write_folder, write_irmas, write_pattern, write_sound, write_table, write_urbansound8k

from pipeline.corpora.folder_levels import choose_levels
from pipeline.corpora.layouts import Recognised, look_into
from pipeline.corpora.name_fields import choose_pattern
from pipeline.corpora.recognition import RECOGNISERS, recognised
from pipeline.corpora.registry import ADAPTERS, CorpusParams, list_corpus
from pipeline.params import validate_params

KINDS = {  # folder of a generated corpus -> the kind that it is
    "speech_commands_v0.02": "speech_commands",
    "FSD50K": "fsd50k",
    "UrbanSound8K": "urbansound8k",
    "IRMAS": "irmas",
    "openmic-2018": "openmic2018",
    "instruments": "folder",
}


def _first(root: Path) -> Recognised | None:
    return next(recognised(look_into(root)), None)


def _files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_every_adapter_but_the_demo_can_be_recognised() -> None:
    assert set(RECOGNISERS) == set(ADAPTERS) - {"demo", "mixtures"}


@pytest.mark.parametrize("name", WRITERS)
def test_generated_corpora_are_recognised(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    layout = _first(tmp_path)
    assert layout is not None
    assert layout.kind == KINDS.get(name, name)


def test_esc50_and_esc10_are_told_apart_by_their_tables(tmp_path: Path) -> None:
    make_wav_corpus(tmp_path)
    assert _first(tmp_path) == Recognised("esc50", "it has meta/esc50.csv")
    (tmp_path / "meta" / "esc50.csv").rename(tmp_path / "meta" / "esc10.csv")
    assert _first(tmp_path) == Recognised("esc50", "it has meta/esc10.csv", {"table": "meta/esc10.csv"})


def test_what_an_archive_unpacked_into_one_folder_is_found_below(tmp_path: Path) -> None:
    write_urbansound8k(tmp_path / "UrbanSound8K")
    layout = _first(tmp_path)
    assert layout is not None
    assert (layout.kind, layout.below) == ("urbansound8k", "UrbanSound8K")


def test_sets_of_audioset_that_are_not_here_are_left_out(tmp_path: Path) -> None:
    _files(tmp_path, "balanced_train_segments.csv", "bal_train/aa/x.flac")
    layout = _first(tmp_path)
    assert layout is not None
    assert layout.settings == {"tables.eval": None, "test_share": 0.1}
    _files(tmp_path, "data/eval_segments.csv", "unbal_train/0000.parquet")
    layout = _first(tmp_path)
    assert layout is not None
    assert layout.settings == {"tables.unbal_train": "unbalanced_train_segments.csv"}


def test_irmas_without_test_files_is_read_by_its_names_grouped_by_song(tmp_path: Path) -> None:
    write_irmas(tmp_path)
    for path in list(tmp_path.glob("IRMAS-Testing*")):
        path.rename(tmp_path.parent / path.name)
    layout = _first(tmp_path)
    assert layout is not None
    assert layout.kind == "pattern"
    assert "not here" in layout.notes[0]
    clips = _listed(layout, tmp_path).table()
    assert len(clips) == 22
    assert len(set(clips["group"].to_pylist())) == 11


def _listed(layout: Recognised, root: Path) -> Any:
    section = {"kind": layout.kind, "root": str(root), "max_bad_fraction": 0.0, "max_duration": 60.0}
    section |= (
        {"ignore": [], "licence": ""}
        | ({"levels": ["label"]} if layout.kind == "folder" else {})
        | dict(layout.settings)
    )
    return list_corpus(validate_params(CorpusParams, section, "corpus"))


TABLES = {
    "semicolons": (
        "clips.csv",
        "datei;klasse;label\n" + "".join(f"{n}.wav;x;{'ab'[n % 2]}\n" for n in range(8)),
        {"path_column": "datei"},
    ),
    "one-hot": (
        "clips.csv",
        "file;tone;noise\n" + "".join(f"{n}.wav;{n % 2};{1 - n % 2}\n" for n in range(8)),
        {"labels_column": None, "label_kind": "one"},
    ),
    "several marked": (
        "clips.csv",
        "file,tone,noise\n" + "".join(f"{n}.wav,1,{n % 2}\n" for n in range(8)),
        {"labels_column": None, "label_kind": "many"},
    ),
    "JSON lines": (
        "clips.jsonl",
        "".join(f'{{"audio": "./{n}.wav", "tags": ["a", "{n % 2}"]}}\n' for n in range(8)),
        {"path_column": "audio", "labels_column": "tags", "label_kind": "many"},
    ),
    "a list in JSON": (
        "clips.json",
        "[" + ",".join(f'{{"file": "{n}.wav", "species": "{"ab"[n % 2]}"}}' for n in range(8)) + "]",
        {"labels_column": "species"},
    ),
    "labels in one cell": (
        "clips.tsv",
        "file\tlabels\n" + "".join(f"{n}.wav\t{('a', 'b', 'a;b')[n % 3]}\n" for n in range(8)),
        {"labels_column": "labels", "label_separator": ";", "label_kind": "many"},
    ),
    "roles, groups and times": (
        "clips.txt",
        "file,onset,duration,Class,split,speaker\n"
        + "".join(f"{n}.wav,0.1,0.2,{'ab'[n % 2]},{('train', 'test')[n // 4]},s{n // 2}\n" for n in range(8)),
        {
            "labels_column": "Class",
            "start_column": "onset",
            "duration_column": "duration",
            "fold_column": "split",
            "group_column": "speaker",
        },
    ),
    "words that recur, in a column of any name": (
        "clips.csv",
        "file,length,who\n" + "".join(f"{n}.wav,{n},{'ab'[n % 2]}\n" for n in range(8)),
        {"labels_column": "who"},
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_recognised_by_their_columns(case: str, tmp_path: Path) -> None:
    name, text, expected = TABLES[case]
    _files(tmp_path, *(f"{number}.wav" for number in range(8)))
    (tmp_path / name).write_text(text)
    layout = _first(tmp_path)
    assert layout is not None
    assert layout.kind == "table"
    assert layout.settings == {"table": str(tmp_path / name)} | expected


def test_paths_of_a_table_may_be_below_another_folder_or_absolute(tmp_path: Path) -> None:
    _files(tmp_path, *(f"audio/wav/{number}.wav" for number in range(8)))
    (tmp_path / "meta").mkdir()
    table = tmp_path / "meta" / "all.csv"
    table.write_text("file,label\n" + "".join(f"wav/{n}.wav,{'ab'[n % 2]}\n" for n in range(8)))
    layout = _first(tmp_path)
    assert layout is not None
    assert (layout.kind, layout.below) == ("table", "audio")
    table.write_text("file,label\n" + "".join(f"{tmp_path}/audio/wav/{n}.wav,{'ab'[n % 2]}\n" for n in range(8)))
    layout = _first(tmp_path)
    assert layout is not None
    assert (layout.kind, layout.below) == ("table", "")


def test_groups_that_hold_a_class_alone_are_not_taken(tmp_path: Path) -> None:
    _files(tmp_path, *(f"{number}.wav" for number in range(8)))
    rows = "".join(f"{n}.wav,{'ab'[n % 2]},{'xy'[n % 2]}\n" for n in range(8))
    (tmp_path / "clips.csv").write_text(f"file,label,speaker\n{rows}")
    layout = _first(tmp_path)
    assert layout is not None
    assert "group_column" not in layout.settings
    assert layout.notes == ("the column `speaker` is not taken for groups: all clips of a are of one",)


@pytest.mark.parametrize(
    "text",
    [
        "file,label\nelsewhere.wav,a\n",  # names no file that is here
        "file,length\n0.wav,1\n1.wav,2\n",  # has no labels
        "file,label\n0.wav\n",  # is broken
        "",
    ],
)
def test_a_table_that_says_nothing_of_the_files_is_passed_over(text: str, tmp_path: Path) -> None:
    _files(tmp_path, *(f"{number}.wav" for number in range(4)))
    (tmp_path / "clips.csv").write_text(text)
    assert _first(tmp_path) is None


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([f"{c}/{n}.wav" for c in "ab" for n in range(4)], ["label"]),
        ([f"audio/{c}/{n}.wav" for c in "ab" for n in range(4)], ["other", "label"]),
        ([f"{f}/{c}/{n}.wav" for f in ("train", "test") for c in "ab" for n in range(4)], ["fold", "label"]),
        ([f"{c}/fold{f}/{n}.wav" for f in (1, 2, 3) for c in "ab" for n in range(4)], ["label", "fold"]),
        ([f"{c}/{c}{g}/{n}.wav" for c in "ab" for g in range(3) for n in range(4)], ["label", "group"]),
        ([f"speaker{s}/{c}/{n}.wav" for s in range(5) for c in "ab" for n in range(4)], ["group", "label"]),
        ([f"{c}/only{c}/{n}.wav" for c in "ab" for n in range(4)], ["label"]),
        ([f"{n}.wav" for n in range(4)], None),
        ([f"a/{n}.wav" for n in range(4)], None),
        ([f"{n}/x.wav" for n in range(4)], None),
        ([f"{f}/{n}.wav" for f in ("train", "test") for n in range(4)], None),
    ],
)
def test_levels_of_folders_are_told_by_their_names(paths: list[str], expected: list[str] | None) -> None:
    assert choose_levels([PurePosixPath(path) for path in paths]) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"{d}_{s}_{t}" for d in "012" for s in ("jo", "al") for t in "1234"], "(?P<label>[^_]+)_(?P<group>[^_]+)_[^_]+"),
        ([f"{t}-{c}" for c in ("dog", "cat") for t in range(4)], "[^-]+-(?P<label>[^-]+)"),
        ([f"x.{c}.{t}" for c in ("dog", "cat") for t in range(4)], r"[^.]+\.(?P<label>[^.]+)\.[^.]+"),
        ([f"{c}{t}" for c in ("dog", "big cat") for t in range(4)], r"(?P<label>[^\W\d]+(?:[ _-][^\W\d]+)*)[ _-]?\(?\d+\)?"),
        ([f"take{t}" for t in range(8)], None),
        ([f"{t}" for t in range(8)], None),
    ],
)  # fmt: skip
def test_fields_of_names_are_told_by_what_recurs(names: list[str], expected: str | None) -> None:
    fields = choose_pattern(names)
    assert (fields and fields.pattern) == expected


def test_text_files_beside_the_audio_are_labels_unless_they_are_transcripts(tmp_path: Path) -> None:
    for number in range(8):
        write_sound(tmp_path / f"x{number}.wav", number).with_suffix(".txt").write_text(
            f"{'ab'[number % 2]}\t\r\n\r\n" + ("c\n" if number == 3 else "")
        )
    layout = _first(tmp_path)
    assert layout is not None
    assert (layout.kind, layout.settings) == ("beside", {})
    listing = _listed(Recognised("beside", "", {"label_kind": "many"}), tmp_path)
    assert listing.classes == ("a", "b", "c")
    assert listing.table()["labels"].to_pylist()[:4] == [["a"], ["b"], ["a"], ["b", "c"]]
    for number in range(8):
        (tmp_path / f"x{number}.txt").write_text(f"sentence {number}\n")
    assert _first(tmp_path) is None


@pytest.mark.parametrize("write", [write_table, write_folder, write_pattern])
def test_what_is_recognised_can_be_listed(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    for layout in recognised(look_into(tmp_path)):
        if layout.kind != "table":  # it has many keys
            assert len(_listed(layout, tmp_path).clips)
