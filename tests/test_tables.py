"""Tables as spreadsheets and programs write them: separators, empty rows, one-hot columns, absolute paths, JSON."""

import json
import re
from pathlib import Path

import pytest
from test_corpora import table_params

from pipeline.corpora import table
from pipeline.corpora.base import read_rows
from pipeline.corpora.registry import list_corpus
from pipeline.errors import CorpusError

ROWS = [{"path": "a.wav", "labels": "wren"}, {"path": "b.wav", "labels": "tit"}]


@pytest.mark.parametrize(
    "text",
    [
        "path;labels\na.wav;wren\nb.wav;tit\n",
        "path\tlabels\na.wav\twren\nb.wav\ttit\n",
        '"path";"labels"\r\n"a.wav";wren\r\nb.wav;tit\r\n;\r\n',
        "path,labels\na.wav,wren\nb.wav,tit\n,\n , \n\n",  # as spreadsheets end a table
        "\n\npath,labels\n\na.wav,wren\nb.wav,tit",
    ],
)
def test_a_table_is_read_as_it_was_separated(tmp_path: Path, text: str) -> None:
    (tmp_path / "clips.csv").write_text(text, newline="")
    assert read_rows(tmp_path / "clips.csv", ("path", "labels")) == ROWS


def test_a_comma_separates_where_it_yields_the_columns(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path,labels,notes;more\na.wav,wren;tit,x\n")
    assert read_rows(tmp_path / "clips.csv", ("path", "labels"))[0]["labels"] == "wren;tit"


def test_a_column_twice_is_named_with_all_others(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("path,labels,labels,x,x\na,b,c,d,e\n")
    with pytest.raises(CorpusError, match=r"columns listed twice \(rename or delete one\) \(2\): labels, x$"):
        read_rows(tmp_path / "clips.csv", ("path",))


def test_a_list_of_objects_is_a_table(tmp_path: Path) -> None:
    entries = [{"path": "a.wav", "labels": ["wren", "tit"]}, {"path": "b.wav", "labels": "tit"}]
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    listing = table.list_clips(table_params(tmp_path, "clips.json", label_kind="many"))
    assert [clip.labels for clip in listing.clips] == [("wren", "tit"), ("tit",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "clips.json: expected JSON, found"),
        ('{"path": "a.wav"}', "clips.json: expected a list of objects, one per clip, found dict"),
        ('[{"path": "a.wav"}, 3]', "clips.json, entry 2: expected a JSON object, found int"),
        ('[{"path": "a.wav"}]', "clips.json, line 1: expected a column `labels`, found only: path"),
        ("[]", "expected at least one clip, found none"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "clips.json").write_text(text)
    with pytest.raises(CorpusError, match=re.escape(message)):
        read_rows(tmp_path / "clips.json", ("path", "labels"))


def test_a_column_for_each_class_says_which_a_clip_has_and_which_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text(
        "path,bird,wren,tit,note\na.wav,w1,1,0,loud\nb.wav,w2,?,True,\nc.wav,w3,0.0,nan,3\n"
    )
    params = table_params(tmp_path, labels_column=None, label_kind="many", group_column="bird")
    listing = list_corpus(params)
    assert listing.classes == ("wren", "tit")
    columns = listing.table()
    assert columns["labels"].to_pylist() == [["wren"], ["tit"], []]
    assert columns["unknown"].to_pylist() == [[], ["wren"], ["tit"]]
    chosen = list_corpus(table_params(tmp_path, labels_column=None, label_kind="many", classes=["tit"]))
    assert (chosen.classes, chosen.table()["labels"].to_pylist()) == (("tit",), [[], ["tit"], []])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            None,
            "expected a column of 1 and 0 for each class, since corpus.labels_column is null, found path, wren, tit",
        ),
        (["wren", "tit"], "cells of `wren` that are not 1, 0, true, false or ? (unknown) (1): 'yes'"),
        (["wren", "owl"], "classes without a column (1): owl\nThe columns are "),
    ],
)
def test_columns_that_are_no_classes_are_named(tmp_path: Path, classes: list[str] | None, message: str) -> None:
    (tmp_path / "clips.csv").write_text("path,wren,tit\na.wav,yes,\n")
    with pytest.raises(CorpusError, match=re.escape(message)):
        table.list_clips(table_params(tmp_path, labels_column=None, label_kind="many", classes=classes))


def test_an_absolute_path_below_the_root_is_one_below_it(tmp_path: Path) -> None:
    root, link = tmp_path / "audio", tmp_path / "link"
    root.mkdir()
    link.symlink_to(root)
    text = f"path,labels\n{root}/a.wav,wren\n{link}/x/b.wav,tit\n/elsewhere/c.wav,tit\n"
    (tmp_path / "clips.csv").write_text(text)
    for folder, expected in ((link, ["a.wav", "x/b.wav"]), (root, ["a.wav", f"{link}/x/b.wav"])):
        clips = table.list_clips(table_params(folder, table=str(tmp_path / "clips.csv"))).clips
        assert [clip.source for clip in clips] == [*expected, "/elsewhere/c.wav"]
