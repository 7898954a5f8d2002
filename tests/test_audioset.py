"""AudioSet as mirrors ship it: tars or folders, real tables where they are at hand, and what is wrong with either."""

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, make_waveform
from test_parquet_audio import write_parquet
from test_spectrogram_stage import PARAMS
from test_tars import write_tar

import pipeline.corpora.parquet_audio as parquet_audio
import stages.corpus
import stages.spectrogram
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.missing import open_missing
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.corpora.audioset import Params as AudiosetParams
from pipeline.corpora.audioset import list_clips
from pipeline.corpora.audioset_files import read_classes, read_segments
from pipeline.corpora.manifest import Refresh, refresh_manifest
from pipeline.corpora.relabelling import UsedLabels
from pipeline.corpora.splitting import SplitParams, assign_roles, fold_names
from pipeline.errors import CorpusError, ParamsError
from pipeline.execution.executors import ExecutionParams
from pipeline.params import validate_params
from pipeline.spectrogram.building import ShardSpec, compute_shard, manifest_clips, open_memo
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.settings import SpectrogramParams

REAL = REPOSITORY.parent / "shared" / "metadata" / "audioset"
CLASSES = REPOSITORY / "metadata" / "audioset" / "class_labels_indices.csv"
COMMENTS = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_segs=4\n# YTID, start_seconds, end_seconds, labels\n"
TRAIN, TEST = ("--PJHxphWEs", "-0aBcDeFgHi", "_under_scor", "Ystartswith"), ("0123456789a", "vanished_00")
SPEECH, DOG, BARK = "/m/09x0r", "/m/0bt9lr", "/m/05tny_"
WHOLE = {"classes": None, "min_clips": 0, "parts": {}, "test_share": 0.0, "seed": 0}
SPLIT = SplitParams(num_folds=2, validation_fraction=0.0, seed=0, near_duplicates="report")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the memo of contents and the report lie below


@pytest.fixture
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"needs AudioSet's tables at {REAL}")
    return REAL


def segments(videos: tuple[str, ...], labels: str = f"{DOG},{SPEECH}") -> str:
    return COMMENTS + "".join(f'{video}, 30.000, 40.000, "{labels}"\n' for video in videos)


def make_root(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "train.csv").write_text(segments(TRAIN))
    (root / "eval.csv").write_text(segments(TEST))
    (root / "classes.csv").write_text(f'index,mid,display_name\n1,{DOG},"Dog"\n0,{SPEECH},"Speech, human"\n')
    return root


def params(root: Path, **settings: Any) -> AudiosetParams:
    values = {
        "kind": "audioset",
        "root": str(root),
        "max_bad_fraction": 0.2,
        "max_duration": 15.0,
        "tables": {"bal_train": "train.csv", "unbal_train": None, "eval": "eval.csv"},
        "class_table": str(root / "classes.csv"),
        "missing": "drop",
    } | WHOLE
    return validate_params(AudiosetParams, values | settings, "corpus")


def flac(video: str) -> bytes:
    """Return half a second of sound, another for each video, as mirrors store it: 48 kHz, 24 bit."""
    noise = make_waveform("noise", 0.5, 48000, seed=sum(video.encode()))
    path = Path("encoded.flac")
    soundfile.write(path, np.stack([noise, noise[::-1]], axis=1), 48000, subtype="PCM_24")
    return path.read_bytes()


def make_tars(root: Path) -> Path:
    """Lay the corpus out as on Hugging Face: the last training clip in a second tar, one test clip nowhere."""
    make_root(root)
    (root / "data").mkdir()
    members = [(f"audio/bal_train/{video}.flac", flac(video)) for video in TRAIN]
    write_tar(root / "data" / "bal_train00.tar", *members[:3], ("audio/bal_train/README.md", b"not audio"))
    write_tar(root / "data" / "bal_train01.tar", *members[3:], members[0], ("audio/bal_train/unlisted_00.flac", b"?"))
    write_tar(root / "data" / "unbal_train00.tar", ("audio/unbal_train/not_asked_f.flac", b"?"))
    write_tar(root / "data" / "eval00.tar", (f"audio/eval/{TEST[0]}.flac", flac(TEST[0])))
    return root


def make_parquet(root: Path, paths: tuple[str, ...] = ("data/bal_train/00.parquet", "data/eval/00.parquet")) -> Path:
    """Lay the corpus out as on Hugging Face since October 2025: rows in any order, one test clip nowhere."""
    make_root(root)
    for path, videos in zip(paths, ((*TRAIN[::-1], "unlisted_00"), TEST[:1]), strict=True):
        audio = [(f"{video}.flac", flac(video)) for video in videos]
        labels = [[DOG, SPEECH]] * len(videos)
        write_parquet(root / path, list(audio), group=2, video_id=list(videos), labels=labels)
    return root


def make_tree(root: Path) -> Path:
    make_root(root)
    for name, videos in (("bal_train", TRAIN), ("eval", TEST[:1])):
        for video in videos:
            path = root / name / video[:2] / f"{video}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(flac(video))
    return root


def refresh(root: Path, name: str = "clips.parquet", **settings: Any) -> Refresh:
    return refresh_manifest(params(root, **settings), Path(name), Path("content.sqlite"))


# the tables


def test_classes_stand_in_the_order_of_the_published_table_and_not_of_the_ontology(real: Path) -> None:
    mids, names = read_classes(CLASSES)
    assert CLASSES.read_bytes() == (real / "class_labels_indices.csv").read_bytes()
    assert (len(mids), names[0], names[-1], mids[137]) == (527, "Speech", "Field recording", "/m/04rlf")
    ontology = json.loads((real / "ontology.json").read_text())
    unrestricted = {entry["id"] for entry in ontology if not entry["restrictions"]}
    assert len(unrestricted - set(mids)) == 28
    assert len(set(mids) - unrestricted) == 12  # real classes, which a mapping through the ontology would lose
    assert set(mids) <= {entry["id"] for entry in ontology}


def test_the_real_tables_are_read_as_published(tmp_path: Path, real: Path) -> None:
    tables = {"bal_train": str(real / "balanced_train_segments.csv"), "eval": str(real / "eval_segments.csv")}
    listing = list_clips(params(tmp_path, tables=tables, class_table=str(CLASSES)))
    assert set(listing.table()["fold"].to_pylist()) <= set(AudiosetParams.published_folds)
    clips = listing.table()
    assert len(clips) == 22160 + 20371
    by_id = {row["clip_id"]: row for row in clips.to_pylist()}
    first = by_id["bal_train/--PJHxphWEs"]
    assert (first["labels"], first["group"], first["fold"]) == (["Speech", "Gush"], "--PJHxphWEs", "train")
    assert by_id["eval/--BfvyPmVMo"]["fold"] == "test"
    assert sum(map(len, clips["labels"].to_pylist())) == 52882 + 51804
    with (real / "eval_segments.csv").open() as file:  # the slow way
        rows = [row for row in csv.reader(file, skipinitialspace=True) if not row[0].startswith("#")]
    names = dict(zip(*read_classes(CLASSES), strict=True))
    for row in rows:
        assert by_id[f"eval/{row[0]}"]["labels"] == [names[mid] for mid in row[3].split(",")]


def test_the_recipe_reads_the_tables_that_the_project_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.compose import compose

    monkeypatch.chdir(REPOSITORY)
    document, _ = compose("audioset", ["corpus.tables.unbal_train=u.csv"], REPOSITORY / "recipes")
    corpus = validate_params(AudiosetParams, document["corpus"], "corpus")
    assert corpus.class_table == CLASSES
    assert list(corpus.tables) == ["bal_train", "unbal_train", "eval"]
    assert str(REPOSITORY) not in corpus.identity()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.csv: expected rows of .*found"),
        (COMMENTS + f"{TRAIN[0]}, 0.0, 10.0\n", r"train\.csv: expected rows of .*found .*Expected 4 columns, got 3"),
        (COMMENTS + f'{TRAIN[0]}, soon, 10.0, "{DOG}"\n', r"train\.csv: expected rows of .*found .*'soon'"),
        (COMMENTS + f'{TRAIN[0]}, 10.0, 0.0, "{DOG}"\n', rf"segments that end before they begin \(1\): {TRAIN[0]}"),
        (segments(TRAIN, ""), r"segments without a label \(4\): --PJHxphWEs"),
        (
            segments(TRAIN, BARK),
            r"unknown labels, where the classes are Speech, human, Dog \(1\): '/m/05tny_' \(of 4 clips\)",
        ),
        (segments((*TRAIN, TRAIN[1])), rf"clip ids listed twice \(1\): bal_train/{TRAIN[1]}"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    root = make_root(tmp_path / "corpus")
    (root / "train.csv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        refresh(root)


def test_a_class_table_with_gaps_and_a_missing_table_are_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "corpus")
    with pytest.raises(
        CorpusError, match=r"nowhere\.csv: expected AudioSet's table of segments, found no such file, there or in"
    ):
        read_segments(root / "nowhere.csv")
    (root / "classes.csv").write_text(f"index,mid,display_name\n0,{DOG},Dog\n2,{SPEECH},Speech\n")
    with pytest.raises(CorpusError, match=r"classes\.csv: index: expected 0 to 1, each once"):
        refresh(root)


def test_a_video_of_both_training_sets_is_listed_once_and_one_of_train_and_test_is_a_leak(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "corpus")
    (root / "more.csv").write_text(segments((TRAIN[0], "another_one")))
    listing = list_clips(params(root, tables={"bal_train": "train.csv", "unbal_train": "more.csv", "eval": "eval.csv"}))
    assert listing.left_out["listed_again"] == 1
    ids = listing.table()["clip_id"].to_pylist()
    assert [i for i in ids if i.startswith("unbal")] == ["unbal_train/another_one"]

    (root / "eval.csv").write_text(segments((TRAIN[0], *TEST)))
    refresh(root, missing="keep")
    with pytest.raises(
        CorpusError, match=rf"groups in two roles \(1\): {TRAIN[0]} \(test: eval/{TRAIN[0]}, train: bal"
    ):
        assign_roles(open_clips(Path("clips.parquet")), "official", SPLIT)


# the audio


def test_tars_are_read_in_place_and_everything_else_in_them_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = make_tars(tmp_path / "corpus")
    done = refresh(root)
    assert (done.num_clips, done.num_missing, done.written) == (5, 1, True)
    assert done.left_out == {"refused": 0, "not_audio": 1, "repeated": 1, "unlisted": 1}
    assert "bal_train: 1 files skipped: unlisted" in caplog.text
    assert (
        f"1 of 6 clips have no readable file below {root}, eval/va/vanished_00.flac for one; corpus.missing is drop"
        in caplog.text
    )
    clips = open_clips(Path("clips.parquet"))
    assert clips.metadata["classes"] == ["Speech, human", "Dog"]
    row = next(row for row in clips.columns.to_pylist() if row["group"] == TRAIN[3])
    assert (row["clip_id"], row["fold"], row["labels"]) == (f"bal_train/{TRAIN[3]}", "train", [0, 1])
    assert (row["source"], row["member"]) == ("data/bal_train01.tar", f"audio/bal_train/{TRAIN[3]}.flac")
    assert (root / row["source"]).read_bytes()[row["offset"] :][: row["size"]] == flac(TRAIN[3])
    assert fold_names(clips, SPLIT) == ["official"]
    assert assign_roles(clips, "official", SPLIT) == ["train"] * 4 + ["test"]


def test_missing_clips_are_kept_on_demand(tmp_path: Path) -> None:
    root = make_tars(tmp_path / "corpus")
    done = refresh(root, missing="keep")
    assert (done.num_clips, done.num_missing) == (6, 1)
    assert open_clips(Path("clips.parquet")).columns.to_pylist()[-1]["content"] == ""


def test_clips_without_audio_are_listed_by_set_whether_they_are_kept_or_not(tmp_path: Path) -> None:
    root = make_tars(tmp_path / "corpus")
    for missing in ("keep", "drop"):
        corpus, path = params(root, missing=missing), Path(missing) / "missing.parquet"
        stages.corpus.run(corpus, UsedLabels(use=""), path.with_name("clips.parquet"), path)
        table = open_missing(path)
        assert table.metadata["listed"] == {"bal_train": 4, "eval": 2}
        lost = {"clip_id": f"eval/{TEST[1]}", "source": "eval/va/vanished_00.flac", "set": "eval", "reason": "missing"}
        assert table.columns.to_pylist() == [lost]
    before = path.stat().st_mtime_ns
    stages.corpus.run(corpus, UsedLabels(use=""), path.with_name("clips.parquet"), path)
    assert path.stat().st_mtime_ns == before
    for tar in root.rglob("*.tar"):
        tar.unlink()
    stages.corpus.run(corpus, UsedLabels(use=""), path.with_name("clips.parquet"), path)  # kept, as the manifest is
    assert len(open_missing(path)) == 1
    path.unlink()
    stages.corpus.run(corpus, UsedLabels(use=""), path.with_name("clips.parquet"), path)
    assert (len(open_missing(path)), open_missing(path).metadata["listed"]) == (0, {})


def test_the_report_of_the_stage_has_every_count(tmp_path: Path) -> None:
    stages.corpus.run(params(make_tars(tmp_path / "corpus")), UsedLabels(use=""), Path("clips.parquet"))
    report = json.loads(Path("results/stages/corpus.json").read_text())
    assert report["failed"] == {"missing": 1, "not_audio": 1, "repeated": 1, "unlisted": 1}


@pytest.mark.parametrize("path", ["bal_train/Y{}.flac", "audio/bal_train/{}.flac", "bal_train/any/{}.wav"])
def test_folders_of_other_mirrors_are_read_too(tmp_path: Path, path: str) -> None:
    root = make_root(tmp_path / "corpus")
    for video in TRAIN:
        file = root / path.format(video)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(flac(video))
    done = refresh(root, tables={"bal_train": "train.csv"})
    assert (done.num_clips, done.num_missing) == (4, 0)
    assert open_clips(Path("clips.parquet")).list("source") == sorted(path.format(video) for video in TRAIN)


def test_packing_the_tars_anew_changes_places_and_no_content(tmp_path: Path) -> None:
    root = make_tars(tmp_path / "corpus")
    refresh(root)
    before = open_clips(Path("clips.parquet")).columns
    (root / "data" / "bal_train01.tar").unlink()
    members = [(f"elsewhere/Y{video}.flac", flac(video)) for video in reversed(TRAIN)]
    write_tar(root / "data" / "bal_train00.tar", *members, form="pax")
    assert refresh(root).written
    after = open_clips(Path("clips.parquet")).columns
    moved = {name for name in before.column_names if before[name] != after[name]}
    assert moved == {"source", "member", "offset"}


def test_a_cut_tar_serves_what_it_has_and_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_tars(tmp_path / "corpus")
    path = root / "data" / "bal_train00.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    os.utime(path, (1_700_000_000, 1_700_000_000))
    done = refresh(root)
    assert (done.num_clips, done.num_missing) == (3, 3)  # the first member of the tar is in the other too
    assert re.search(r"bal_train00\.tar: expected \d+ bytes of audio/bal_train/.*: it was cut", caplog.text)
    path.write_bytes(whole)
    assert refresh(root).num_missing == 1


def test_without_audio_the_manifest_is_kept(tmp_path: Path) -> None:
    root = make_tars(tmp_path / "corpus")
    refresh(root)
    for path in root.rglob("*.tar"):
        path.unlink()
    done = refresh(root)
    assert (done.num_clips, done.written) == (5, False)


# Parquet files


@pytest.mark.parametrize(
    "paths",
    [
        ("data/bal_train/00.parquet", "data/eval/00.parquet"),
        ("data/bal_train-00000-of-00001.parquet", "data/eval-00000-of-00001.parquet"),
        ("bal_train/0.parquet", "eval/0.parquet"),
    ],
)
def test_parquet_files_are_read_in_place(tmp_path: Path, paths: tuple[str, str]) -> None:
    root = make_parquet(tmp_path / "corpus", paths)
    done = refresh(root)
    assert (done.num_clips, done.num_missing) == (5, 1)
    assert {reason: count for reason, count in done.left_out.items() if count} == {"unlisted": 1}
    rows = {row["clip_id"]: row for row in open_clips(Path("clips.parquet")).columns.to_pylist()}
    row = rows[f"bal_train/{TRAIN[0]}"]
    assert (row["source"], row["member"], row["offset"]) == (paths[0], f"{TRAIN[0]}.flac", 3)
    assert row["size"] == len(flac(TRAIN[0]))


def test_parquet_files_need_no_table_of_segments(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "corpus")
    for table in ("train.csv", "eval.csv"):
        (root / table).unlink()
    done = refresh(root)
    assert (done.num_clips, done.num_missing) == (6, 0)  # the rows are all there is, listed by Google or not
    assert open_clips(Path("clips.parquet")).list("labels") == [[0, 1]] * 6


def test_tars_and_parquet_files_give_the_same_frames_and_recompute_none(tmp_path: Path) -> None:
    packed = build(params(make_tars(tmp_path / "tars")), tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "memo").rename(tmp_path / "two" / "memo")
    rows = build(params(make_parquet(tmp_path / "rows")), tmp_path / "two")
    one, two = (open_clips(path / "clips.parquet").columns for path in (packed, rows))
    places = ["source", "member", "offset", "size"]
    assert one.drop_columns(places).equals(two.drop_columns(places))
    report = json.loads(Path("results/stages/spectrogram.json").read_text())
    assert (report["decoded"], report["clips"]) == (0, 5)
    fresh = build(params(tmp_path / "rows"), tmp_path / "three")
    a, b = (open_spectrogram(path / "spectrogram") for path in (rows, fresh))
    ids = one["clip_id"].to_pylist()
    for left, right in zip(FrameReader(a).read(ids), FrameReader(b).read(ids), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_shard_reads_each_row_group_once_whatever_the_order_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, groups = params(make_parquet(tmp_path / "rows")), []
    batches = parquet_audio._batches
    refresh_manifest(corpus, Path("clips.parquet"), Path("content.sqlite"))

    def counted(file: Any, column: str, group: int) -> Any:
        groups.append((file.metadata.num_rows, group))
        return batches(file, column, group)

    monkeypatch.setattr(parquet_audio, "_batches", counted)
    clips = open_clips(Path("clips.parquet"))
    settings = validate_params(SpectrogramParams, PARAMS, "spectrogram")
    memo = open_memo(Path("memo"), settings, 15.0)
    spec = ShardSpec("0" * 32, tuple(manifest_clips(clips, 0, 5)), {}, settings, corpus.root, 15.0, memo)
    assert compute_shard(spec).decoded == 5
    assert groups == [(5, 0), (5, 1), (1, 0)]


def test_a_replaced_parquet_file_is_noticed(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "corpus")
    refresh(root)
    before = open_clips(Path("clips.parquet")).columns
    audio = [(f"{video}.flac", flac(video + "!")) for video in TRAIN]
    write_parquet(root / "data/bal_train/00.parquet", list(audio), video_id=list(TRAIN), labels=[[DOG]] * 4)
    assert refresh(root).written
    after = open_clips(Path("clips.parquet")).columns
    same = [a == b for a, b in zip(before["content"].to_pylist(), after["content"].to_pylist(), strict=True)]
    assert same == [False] * 4 + [True]


def test_parquet_files_without_labels_ask_for_the_table(tmp_path: Path) -> None:
    root = make_root(tmp_path / "corpus")
    (root / "train.csv").unlink()
    write_parquet(root / "bal_train.parquet", [("a.flac", b"a")], video_id=[TRAIN[0]])
    with pytest.raises(
        CorpusError, match="expected the columns video_id and labels, found video_id; put AudioSet's table"
    ):
        refresh(root)


# parts


def made_up(root: Path, count: int = 400) -> Path:
    """Make tables of many videos without audio: Speech everywhere, Dog in every second, Bark in three."""
    make_root(root)
    (root / "classes.csv").write_text(f"index,mid,display_name\n0,{SPEECH},Speech\n1,{DOG},Dog\n2,{BARK},Bark\n")
    for name in ("train", "eval"):
        lines = [
            f'{name[:2]}{i:09}, 0.0, 10.0, "{",".join([SPEECH] + [DOG] * (i % 2) + [BARK] * (i < 3))}"'
            for i in range(count)
        ]
        (root / f"{name}.csv").write_text(COMMENTS + "\n".join(lines) + "\n")
    return root


def listed(root: Path, **settings: Any) -> dict[str, str]:
    clips = list_clips(params(root, **settings)).table()
    return dict(zip(clips["clip_id"].to_pylist(), clips["fold"].to_pylist(), strict=True))


def test_a_larger_share_holds_the_smaller_one_and_sets_have_their_own(tmp_path: Path) -> None:
    root = made_up(tmp_path / "corpus")
    small, large = (listed(root, parts={"bal_train": share}) for share in (0.1, 0.3))
    train = [{i for i in ids if i.startswith("bal")} for ids in (small, large)]
    assert train[0] < train[1]
    assert 20 <= len(train[0]) <= 60
    assert 90 <= len(train[1]) <= 150
    assert sum(i.startswith("eval") for i in small) == 400
    assert listed(root, parts={"bal_train": 0.1}, seed=1).keys() != small.keys()


def test_a_number_is_of_clips_with_audio(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "corpus")
    write_parquet(
        root / "data/bal_train/00.parquet", [(f"{v}.flac", flac(v)) for v in TRAIN[:3]], video_id=list(TRAIN[:3])
    )
    for number in (1, 2, 3, 10):
        assert refresh(root, parts={"bal_train": number}).num_clips == min(number, 3) + 1


def test_classes_keep_their_clips_and_no_other_label(tmp_path: Path) -> None:
    root = made_up(tmp_path / "corpus")
    listing = list_clips(params(root, classes=["Bark", DOG]))
    assert listing.classes == ("Dog", "Bark")
    labels = listing.table()["labels"].to_pylist()
    assert len(labels) == 2 * (200 + 2)
    assert {tuple(sorted(own)) for own in labels} == {("Dog",), ("Bark",), ("Bark", "Dog")}
    assert listing.left_out["not_in_part"] == 800 - len(labels)
    with pytest.raises(CorpusError, match=r"corpus\.classes.*unknown classes \(1\): Meow"):
        list_clips(params(root, classes=["Meow"]))


def test_test_clips_are_held_out_where_there_is_no_evaluation_set(tmp_path: Path) -> None:
    root = made_up(tmp_path / "corpus")
    tables = {"bal_train": "train.csv", "unbal_train": None, "eval": None}
    small, large = (listed(root, tables=tables, test_share=share) for share in (0.1, 0.2))
    tested = [{i for i, fold in folds.items() if fold == "test"} for folds in (small, large)]
    assert tested[0] < tested[1]
    assert 20 <= len(tested[0]) <= 60
    growing = listed(root, tables=tables, test_share=0.1, parts={"bal_train": 0.5})
    assert all(small[clip] == fold for clip, fold in growing.items())
    assert 0 < sum(fold == "test" for fold in growing.values()) < len(tested[0])
    with pytest.raises(ParamsError, match=r"found test_share 0\.1 and tables\.eval eval\.csv; set test_share to 0, or"):
        params(root, test_share=0.1)


def test_rare_classes_are_left_out_on_demand(tmp_path: Path) -> None:
    root = made_up(tmp_path / "corpus", 20)
    for name in ("train", "eval"):
        rows = read_segments(root / f"{name}.csv")["video"].to_pylist()
        folder = "bal_train" if name == "train" else "eval"
        write_parquet(root / "data" / folder / "0.parquet", [(None, b"x" + v.encode()) for v in rows], video_id=rows)
    assert list_clips(params(root, min_clips=3)).classes == ("Speech", "Dog", "Bark")
    listing = list_clips(params(root, min_clips=4))
    assert listing.classes == ("Speech", "Dog")
    assert {label for own in listing.table()["labels"].to_pylist() for label in own} == {"Speech", "Dog"}


def test_a_class_without_clips_stops_with_what_to_do(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "corpus")
    (root / "classes.csv").write_text(f"index,mid,display_name\n0,{SPEECH},Speech\n1,{DOG},Dog\n2,{BARK},Bark\n")
    refresh(root)
    with pytest.raises(CorpusError, match=r"classes without a training clip \(1\): Bark\n(.*\n)*.*corpus\.min_clips=1"):
        assign_roles(open_clips(Path("clips.parquet")), "official", SPLIT)
    refresh(root, min_clips=1)
    assert assign_roles(open_clips(Path("clips.parquet")), "official", SPLIT) == ["train"] * 4 + ["test"]


@pytest.mark.parametrize("part", [0, -1, 1.0, 1.5, True, "0.1"])
def test_a_part_is_a_share_below_1_or_a_number(tmp_path: Path, part: Any) -> None:
    with pytest.raises(ParamsError, match=r"corpus\.parts\.bal_train"):
        params(tmp_path, parts={"bal_train": part})


def test_the_whole_has_the_identity_that_it_had_before_there_were_parts(tmp_path: Path) -> None:
    whole = params(tmp_path, parts={"bal_train": None})
    assert list(json.loads(whole.identity())) == ["class_table", "kind", "missing", "tables"]
    assert params(tmp_path, parts={"bal_train": 10}).identity() != whole.identity()


@pytest.mark.parametrize("where", ["", "data"])
def test_tables_are_found_beside_the_tars_too(tmp_path: Path, where: str) -> None:
    root = make_tars(tmp_path / "corpus")
    for table in ("train.csv", "eval.csv", "classes.csv"):
        (root / table).rename(root / where / table)
    assert refresh(root).num_clips == 5


# from tars or from folders, the frames are the same


def build(corpus: AudiosetParams, path: Path) -> Path:
    refresh_manifest(corpus, path / "clips.parquet", path / "content.sqlite")
    execution = ExecutionParams(executor="local", scheduler="", workers=1, memo=path / "memo")
    settings = validate_params(SpectrogramParams, PARAMS, "spectrogram")
    stages.spectrogram.run(settings, corpus, execution, path / "clips.parquet", path / "spectrogram")
    return path


def test_tars_and_folders_give_the_same_spectrogram(tmp_path: Path) -> None:
    packed = build(params(make_tars(tmp_path / "tars")), tmp_path / "one")
    expanded = build(params(make_tree(tmp_path / "tree")), tmp_path / "two")
    one, two = (open_clips(path / "clips.parquet").columns for path in (packed, expanded))
    places = ["source", "member", "offset", "size"]
    assert one.drop_columns(places).equals(two.drop_columns(places))
    a, b = (open_spectrogram(path / "spectrogram") for path in (packed, expanded))
    assert a.index.columns.equals(b.index.columns)
    ids = one["clip_id"].to_pylist()
    assert len(ids) == 5
    for left, right in zip(FrameReader(a).read(ids), FrameReader(b).read(ids), strict=True):
        np.testing.assert_array_equal(left, right)
    assert a.index.list("status") == ["ok"] * 5


def test_a_tar_that_is_packed_anew_after_the_manifest_serves_no_wrong_clip(tmp_path: Path) -> None:
    corpus = params(make_tars(tmp_path / "tars"))
    refresh_manifest(corpus, Path("clips.parquet"), Path("content.sqlite"))
    members = [(f"audio/bal_train/{video}.flac", flac(video)) for video in reversed(TRAIN)]
    write_tar(tmp_path / "tars" / "data" / "bal_train00.tar", *members)
    settings = validate_params(SpectrogramParams, PARAMS, "spectrogram")
    execution = ExecutionParams(executor="local", scheduler="", workers=1, memo=Path("memo"))
    with pytest.raises(CorpusError, match=r"moved: 3\n"):
        stages.spectrogram.run(settings, corpus, execution, Path("clips.parquet"), Path("spectrogram"))


def test_the_report_and_the_picture_of_a_clip_hear_a_member_too(tmp_path: Path) -> None:
    from pipeline.reporting.recordings import Recordings
    from tools import inspect_clip

    root = make_tars(tmp_path / "tars")
    refresh(root)
    row = next(row for row in open_clips(Path("clips.parquet")).columns.to_pylist() if row["group"] == TRAIN[1])
    left_out: list[str] = []
    waveform = inspect_clip._waveform(row, root, 16000, 0.5, left_out)
    assert left_out == []
    assert waveform is not None
    assert waveform.shape == (8000,)
    np.testing.assert_array_equal(Recordings({"clip": row}, root, 16000).read("clip")[0], waveform)
