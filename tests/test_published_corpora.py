"""Published corpora in their own layouts, on trees that are generated here, odd cases included."""

import json
import logging
from pathlib import Path, PurePosixPath
from typing import Any

import layouts
import pytest
from conftest import REPOSITORY
from test_corpora import LIMITS

from pipeline.artifacts.clips import ClipTable, open_clips
from pipeline.artifacts.files import file_digest
from pipeline.corpora import irmas
from pipeline.corpora.base import CorpusListing
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.registry import CorpusParams, list_corpus
from pipeline.corpora.splitting import SplitParams, assign_roles, fold_names
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params

SPLIT = SplitParams(num_folds=5, validation_fraction=0.0, seed=0, near_duplicates="report")
INSTRUMENTS = REPOSITORY / "metadata" / "irmas" / "instruments.csv"


def params(root: Path, kind: str, **settings: Any) -> CorpusParams:
    return validate_params(CorpusParams, {"kind": kind, "root": str(root), **LIMITS, **settings}, "corpus")


def manifest(tmp_path: Path, corpus: CorpusParams) -> ClipTable:
    refresh = refresh_manifest(corpus, tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    assert refresh.num_missing == 0
    return open_clips(tmp_path / "clips.parquet")


def rows_of(listing: CorpusListing) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in listing.table().to_pylist()}


def as_announced(corpus: CorpusParams, listing: CorpusListing) -> bool:
    """Return whether a listing has the folds that its adapter says it has, which checks before a run rely on."""
    return set(listing.table()["fold"].to_pylist()) <= set(corpus.published_folds or ())


# UrbanSound8K


def test_urbansound8k_has_ten_folds_and_groups_by_recording(tmp_path: Path) -> None:
    layouts.write_urbansound8k(tmp_path / "audio")
    corpus = params(tmp_path / "audio", "urbansound8k", table="metadata/UrbanSound8K.csv")
    clips = manifest(tmp_path, corpus)
    assert clips.metadata["classes"] == ["drilling", "siren"]  # by classID
    assert fold_names(clips, SPLIT) == [str(fold) for fold in range(1, 11)] == list(corpus.published_folds or ())
    roles = assign_roles(clips, "10", SPLIT)
    assert [clip for clip, role in zip(clips.list("clip_id"), roles, strict=True) if role == "test"] == [
        "1000-0-0-0",
        "1001-1-0-0",
    ]
    assert clips.list("group")[0] == "100"


# FSD50K


def test_fsd50k_takes_its_splits_and_the_order_of_its_vocabulary(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    layouts.write_fsd50k(root)
    assert list_corpus(params(root, "fsd50k")).classes == ("Bark", "Dog", "Rain")
    (root / "FSD50K.ground_truth" / "vocabulary.csv").write_text("0,Rain,/m/06mb1\n1,Dog,/m/0bt9lr\n2,Bark,/m/05tny_\n")
    corpus = params(root, "fsd50k")
    listing = list_corpus(corpus)
    assert as_announced(corpus, listing)
    rows = rows_of(listing)
    assert (rows["dev/0"]["labels"], rows["dev/0"]["fold"]) == (["Bark", "Dog"], "train")
    assert (rows["dev/4"]["fold"], rows["eval/1"]["fold"]) == ("validation", "test")
    clips = manifest(tmp_path, corpus)
    assert clips.metadata["classes"] == ["Rain", "Dog", "Bark"]
    assert clips.metadata["class_ids"] == ["/m/06mb1", "/m/0bt9lr", "/m/05tny_"]
    assert assign_roles(clips, "official", SPLIT).count("validation") == 2


# Speech Commands


def test_speech_commands_needs_no_table(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    layouts.write_speech_commands(root)
    layouts.write_sound(root / "_background_noise_" / "white_noise.wav", 0)
    corpus = params(root, "speech_commands")
    listing = list_corpus(corpus)
    assert as_announced(corpus, listing)
    assert (listing.classes, listing.left_out["ignored"]) == (("left", "right"), 1)
    clips = manifest(tmp_path, corpus)
    assert len(clips) == 8
    assert set(clips.list("group")) == {f"{speaker:08x}" for speaker in range(4)}
    roles = assign_roles(clips, "official", SPLIT)
    assert [roles.count(role) for role in ("train", "validation", "test")] == [4, 2, 2]


def test_speech_commands_of_all_35_words_by_their_lists(tmp_path: Path) -> None:
    words = [f"word{number:02}" for number in range(35)]
    for word in words:
        (tmp_path / word).mkdir()
        (tmp_path / word / "0a_nohash_0.wav").touch()
    (tmp_path / "testing_list.txt").write_bytes(b"".join(f"{word}/0b_nohash_1.wav\r\n".encode() for word in words))
    (tmp_path / "validation_list.txt").write_text("")
    rows = rows_of(list_corpus(params(tmp_path, "speech_commands")))
    assert {row["labels"][0] for row in rows.values()} == set(words)
    assert {name for name, row in rows.items() if row["fold"] == "test"} == {
        f"{word}/0b_nohash_1.wav" for word in words
    }


def test_lists_of_speech_commands_that_are_wrong_are_named(tmp_path: Path) -> None:
    layouts.write_speech_commands(tmp_path)
    listed = (tmp_path / "testing_list.txt").read_text()
    (tmp_path / "validation_list.txt").write_text(listed)
    with pytest.raises(CorpusError, match=r"validation_list.txt and testing_list.txt both name \(2\): left/00000003"):
        list_corpus(params(tmp_path, "speech_commands"))
    (tmp_path / "validation_list.txt").write_text("left.wav\n")
    with pytest.raises(CorpusError, match=r"lines that are not WORD/FILE \(1\): left.wav"):
        list_corpus(params(tmp_path, "speech_commands"))
    (tmp_path / "validation_list.txt").unlink()
    with pytest.raises(
        CorpusError, match=r"validation_list\.txt: expected Speech Commands' list of files, found no such"
    ):
        list_corpus(params(tmp_path, "speech_commands"))


# IRMAS


def irmas_params(root: Path, *leave_out: str) -> CorpusParams:
    return params(root, "irmas", class_table=str(INSTRUMENTS), leave_out=list(leave_out))


def test_irmas_trains_on_folders_and_tests_on_lists_of_codes(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    layouts.write_irmas(root)
    corpus = irmas_params(root)
    listing = list_corpus(corpus)
    assert as_announced(corpus, listing)
    clips = manifest(tmp_path, corpus)
    assert len(clips.metadata["classes"]) == 11
    assert clips.metadata["classes"][:3] == ["cello", "clarinet", "flute"]
    row = rows_of(listing)["IRMAS-TrainingData/cel/000__[cel][nod][jaz_blu]0000__2.wav"]
    assert (row["labels"], row["group"], row["fold"]) == (["cello"], "train/000__[cel][nod][jaz_blu]0000", "train")
    row = rows_of(listing)["IRMAS-TestingData-Part2/Part/(01) a song-1.wav"]
    assert (row["labels"], row["group"], row["fold"]) == (["clarinet", "flute"], "test/(01) a song", "test")
    assert assign_roles(clips, "official", SPLIT).count("train") == 22
    assert listing.left_out["not_audio"] == 11  # the .txt files


def test_irmas_tags_are_optional_and_may_leave_clips_out(tmp_path: Path) -> None:
    tags = {
        "cel/[cel][nod][cla]0058__1.wav": ["nod", "cla"],
        "cla/[cla][cla]0150__1.wav": ["cla"],
        "gel/188__[gel][dru][pop_roc]1__3.wav": ["dru", "pop_roc"],
        "voi/plain name.wav": [],
    }
    for name, expected in tags.items():
        path = PurePosixPath("IRMAS-TrainingData") / name
        assert irmas.tags_of(path) == expected
        layouts.write_sound(tmp_path / path, 0)
    assert irmas.song_of(PurePosixPath("x/[cel][nod][cla]0058__1.wav")) == "[cel][nod][cla]0058"
    assert irmas.song_of(PurePosixPath("x/(02) dont kill the whale-12.wav")) == "(02) dont kill the whale"
    listing = list_corpus(irmas_params(tmp_path, "dru", "cla"))
    assert [PurePosixPath(clip).name for clip in rows_of(listing)] == ["plain name.wav"]
    assert listing.left_out["tagged"] == 3


def test_irmas_names_unknown_codes_and_missing_labels(tmp_path: Path) -> None:
    layouts.write_irmas(tmp_path)
    test = tmp_path / "IRMAS-TestingData-Part1" / "Part"
    (test / "(00) a song-0.txt").write_text("cel\t\nbjo\t\n")
    (test / "(02) a song-2.txt").write_text("\t\n\n")
    layouts.write_sound(tmp_path / "IRMAS-TrainingData" / "banjo" / "1__1.wav", 0)
    with pytest.raises(CorpusError) as error:
        list_corpus(irmas_params(tmp_path))
    assert "codes that are not in instruments.csv (2): 'banjo' of IRMAS-TrainingData/banjo/1__1.wav, 'bjo' of" in str(
        error.value
    )
    assert "test files without a label in their .txt (1): IRMAS-TestingData-Part1/Part/(02) a song-2.wav" in str(
        error.value
    )
    (test / "(04) a song-4.txt").unlink()
    with pytest.raises(
        CorpusError, match=r"\(04\) a song-4.txt: expected the labels of \(04\) a song-4.wav, a code a line"
    ):
        list_corpus(irmas_params(tmp_path))


# OpenMIC-2018


def test_openmic_masks_what_nobody_was_asked_about(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    layouts.write_openmic(root)
    corpus = params(root, "openmic2018", positive=0.5, negative=0.5)
    assert as_announced(corpus, list_corpus(corpus))
    clips = manifest(tmp_path, corpus)
    assert clips.metadata["classes"] == list(layouts.INSTRUMENTS)
    assert clips.list("labels")[:3] == [[0], [1], [2]]
    assert clips.list("unknown")[:3] == [[2], [0], [1]]
    assert clips.list("source")[1] == "audio/001/001_1001.ogg"
    assert assign_roles(clips, "official", SPLIT) == ["train"] * 6 + ["test"] * 3
    unsure = rows_of(list_corpus(params(root, "openmic2018", positive=0.9, negative=0.1)))
    assert all(row["labels"] == [] and len(row["unknown"]) == 3 for row in unsure.values())


def test_openmic_keeps_all_labels_of_a_clip(tmp_path: Path) -> None:
    layouts.write_openmic(tmp_path)
    with (tmp_path / "openmic-2018-aggregated-labels.csv").open("a") as file:
        file.write("000_1000,cello,1.0,4\n")
    row = rows_of(list_corpus(params(tmp_path, "openmic2018", positive=0.5, negative=0.5)))["000_1000"]
    assert (row["labels"], row["unknown"]) == (["accordion", "cello"], [])


def test_openmic_that_is_wrong_is_named(tmp_path: Path) -> None:
    layouts.write_openmic(tmp_path)
    with pytest.raises(ParamsError, match=r"expected negative at most positive, found 0\.6 and 0\.5"):
        params(tmp_path, "openmic2018", positive=0.5, negative=0.6)
    with (tmp_path / "openmic-2018-aggregated-labels.csv").open("a") as file:
        file.write("000_1000,cello,loud,4\n999_1,cello,1.0,4\n")
    with pytest.raises(CorpusError) as error:
        list_corpus(params(tmp_path, "openmic2018", positive=0.5, negative=0.5))
    assert "not a relevance from 0 to 1 (1): 000_1000 ('loud')" in str(error.value)
    assert "clips that no file in partitions/ names (1): 999_1" in str(error.value)


# AST's and PSLA's JSON


def datafile_params(root: Path, **settings: Any) -> CorpusParams:
    values = {
        "data": {"train": "train.json", "validation": None, "test": "eval.json"},
        "class_table": str(root / "class_labels_indices.csv"),
        "weights": "train_weight.csv",
        "path_prefix": "",
        "label_kind": "many",
        "licence": "",
    }
    return params(root, "datafile", **(values | settings))


def test_a_datafile_has_roles_labels_and_weights(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    layouts.write_datafile(root)
    clips = manifest(tmp_path, datafile_params(root))
    assert clips.metadata["classes"] == ["Tone", "Noise"]
    rows = {row["clip_id"]: row for row in clips.columns.to_pylist()}
    assert rows["train/train/5.wav"]["weight"] == 5.5
    assert rows["train/train/0.wav"]["labels"] == [0, 1]
    assert (rows["test/eval/1.wav"]["fold"], rows["test/eval/1.wav"]["weight"]) == ("test", 0.0)


def test_a_datafile_from_another_machine_names_files_by_a_prefix_or_below_the_root(tmp_path: Path) -> None:
    layouts.write_datafile(tmp_path)
    entries = [{"wav": "/data/sls/a.wav", "labels": "/m/0a"}, {"wav": f"{tmp_path}/b.wav", "labels": "/m/0b"}]
    (tmp_path / "train.json").write_text(json.dumps({"data": entries}))
    rows = rows_of(list_corpus(datafile_params(tmp_path, path_prefix="/data/sls/", weights=None)))
    assert {"train/a.wav", "train/b.wav"} <= rows.keys()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.json", "[]", r'train.json: expected \{"data": \[...\]\}, found list'),
        ("train.json", "{", "train.json: expected JSON, found"),
        ("train.json", '{"data": [{"wav": "a"}]}', r"entries without texts `wav` and `labels`, by number \(1\): 1"),
        ("train_weight.csv", "1\n2\n", "expected a weight for each of the 6 training clips, found 2"),
        ("train_weight.csv", "1\nx\n", "expected a number a line, found"),
        ("train_weight.csv", "1\n0\nnan\n", r"weights that are not above 0 \(2\): 0.0, nan"),
    ],
)
def test_a_datafile_that_is_wrong_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    layouts.write_datafile(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(CorpusError, match=message):
        list_corpus(datafile_params(tmp_path))


def test_a_class_table_with_a_machine_id_twice_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write_datafile(tmp_path)
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0a,A\n1,/m/0a,B\n")
    with pytest.raises(CorpusError, match=r"values of mid listed twice \(1\): /m/0a"), caplog.at_level(logging.INFO):
        list_corpus(datafile_params(tmp_path))


# Hugging Face


def huggingface_params(root: Path, **settings: Any) -> CorpusParams:
    values = {"labels_column": "label", "label_kind": "one", "fold_column": None, "group_column": None, "licence": ""}
    return params(root, "huggingface", **(values | settings))


def test_a_hugging_face_dataset_is_read_in_place_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the index of digests goes there
    layouts.write_huggingface(tmp_path / "audio")
    clips = manifest(tmp_path, huggingface_params(tmp_path / "audio"))
    assert clips.metadata["classes"] == ["tone", "noise"]
    rows = {row["clip_id"]: row for row in clips.columns.to_pylist()}
    assert len(rows) == 12
    row = rows["train/1/5.wav"]
    assert (row["source"], row["member"], row["offset"]) == ("data/train-00001-of-00002.parquet", "5.wav", 1)
    assert (row["labels"], row["group"], row["fold"]) == ([1], "train/1/5.wav", "train")
    assert row["content"] == file_digest(layouts.write_sound(tmp_path / "5.wav", 5, "noise"))
    assert assign_roles(clips, "official", SPLIT) == ["test"] * 4 + ["train"] * 8


def test_a_hugging_face_dataset_of_one_split_has_drawn_or_published_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sounds = [layouts.write_sound(tmp_path / f"{number}.wav", number) for number in range(4)]
    path = tmp_path / "audio" / "default" / "train" / "0000.parquet"
    features = {"tags": {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"}}
    columns = {"tags": [[0], [0, 1], [], [1]], "fold": [1, 1, 2, 2], "speaker": ["x", "x", "y", None]}
    layouts.write_parquet(path, sounds, features, **columns)
    settings = {"labels_column": "tags", "label_kind": "many"}
    table = list_corpus(huggingface_params(tmp_path / "audio", **settings)).table()
    assert table["labels"].to_pylist() == [["a"], ["a", "b"], [], ["b"]]
    assert set(table["fold"].to_pylist()) == {""}
    settings |= {"fold_column": "fold", "group_column": "speaker"}
    table = list_corpus(huggingface_params(tmp_path / "audio", **settings)).table()
    assert table["fold"].to_pylist() == ["1", "1", "2", "2"]
    assert table["group"].to_pylist() == ["x", "x", "y", "train/3.wav"]


def test_labels_of_a_hugging_face_dataset_are_names_or_numbers_or_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sounds = [layouts.write_sound(tmp_path / f"{number}.wav", number) for number in range(3)]
    path = tmp_path / "audio" / "train-00000-of-00003-0a1b2c.parquet"
    layouts.write_parquet(path, sounds, {}, label=["wren", "tit", None])
    listing = list_corpus(huggingface_params(tmp_path / "audio"))
    assert (listing.classes, listing.left_out["unlabelled"]) == (("tit", "wren"), 1)
    assert "found 1 of 3 files of train; fetch the others" in caplog.text
    features = {"label": {"names": ["wren"], "_type": "ClassLabel"}}
    layouts.write_parquet(path, sounds, features, label=[0, -1, 0])
    assert list_corpus(huggingface_params(tmp_path / "audio")).left_out["unlabelled"] == 1
    layouts.write_parquet(path, sounds, features, label=[0, 1, 0])
    with pytest.raises(CorpusError, match=r"labels in label that are no number of its 1 classes \(1\): 1"):
        list_corpus(huggingface_params(tmp_path / "audio"))
    with pytest.raises(CorpusError, match=r"expected the column `tag`, found"):
        list_corpus(huggingface_params(tmp_path / "audio", labels_column="tag"))
    path.unlink()
    with pytest.raises(CorpusError, match=r"expected Parquet files named <split>-00000-of-00001\.parquet"):
        list_corpus(huggingface_params(tmp_path / "audio"))
