import dataclasses
import errno
import logging
import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from faults import forbidden
from test_corpora import demo_params, esc50_params

import pipeline.corpora.content as content
from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.files import file_digest
from pipeline.corpora import esc50
from pipeline.corpora.base import ClipRow, CorpusListing
from pipeline.corpora.content import content_digests
from pipeline.corpora.manifest import manifest_columns, refresh_manifest
from pipeline.errors import CorpusError


def listing(*clips: ClipRow, classes: tuple[str, ...] = ("wren", "tit"), label_kind: Any = "one") -> CorpusListing:
    return CorpusListing(classes, label_kind, "ours", list(clips))


def settle(root: Path) -> None:
    """Date every file back: what changed within the last moments is not yet trusted."""
    for path in root.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))


def columns_of(clips: CorpusListing, root: Path) -> dict[str, list[Any]]:
    return manifest_columns(clips, root, root / "content.sqlite")[0].to_pydict()


# the columns


def test_rows_are_sorted_labels_are_targets_and_groups_are_never_empty(tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"b")
    clips = listing(
        ClipRow("z", "b.wav", ("tit", "wren"), group="g", fold="2"),
        ClipRow("a", "gone.wav", ("wren",), start=1.5, duration=2.0),
        label_kind="many",
    )
    columns = columns_of(clips, tmp_path)
    assert columns["clip_id"] == ["a", "z"]
    assert columns["labels"] == [[0], [0, 1]]
    assert columns["group"] == ["gone.wav", "g"]
    assert (columns["start"], columns["duration"]) == ([1.5, 0.0], [2.0, 0.0])
    assert columns["content"] == ["", file_digest(tmp_path / "b.wav")]


def test_the_content_of_a_member_is_its_own_and_not_that_of_its_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"tar")
    (tmp_path / "b.wav").write_bytes(b"b")
    member = ClipRow("a", "a.tar", ("wren",), member="one.wav", offset=512, size=3, content="0123")
    columns = columns_of(listing(member, ClipRow("b", "b.wav", ("wren",))), tmp_path)
    assert columns["content"] == ["0123", file_digest(tmp_path / "b.wav")]
    assert (columns["member"], columns["offset"], columns["size"]) == (["one.wav", ""], [512, 0], [3, 0])


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([ClipRow("a", "a.wav", ("wren",)), ClipRow("a", "b.wav", ("tit",))], "clip ids listed twice (1): a"),
        (
            [ClipRow("a", "a.wav", ("wren",), start=2.5), ClipRow("b", "a.wav", ("tit",), start=2.5)],
            "clips listed twice, by file and start (several labels belong in one row) (1): a.wav at 2.5 s",
        ),
        ([ClipRow("a", "a.wav", ("owl",))], "unknown labels, where the classes are wren, tit (1): 'owl' (of 1 clip)"),
        (
            [ClipRow("a", "a.wav", ("wren", "tit")), ClipRow("b", "b.wav", ())],
            "clips without exactly one label, where label_kind is one (2): a (wren, tit), b (none)",
        ),
        (
            [ClipRow("a", "a.wav", ("wren",), unknown=("tit",))],
            "clips with masked labels, which label_kind many allows (1): a",
        ),
        (
            [ClipRow("a", "a.wav", ("wren",), unknown=("owl",))],
            "masked labels that are no classes, where the classes are wren, tit (1): 'owl' (of 1 clip)",
        ),
        ([ClipRow("a", "a.wav", ("wren",), unknown=("wren",))], "clips with a label that is masked too (1): a"),
        (
            [ClipRow("a", "a.wav", ("wren",), weight=float("inf"))],
            "clips with a negative or endless sampling weight (1): a",
        ),
        ([ClipRow("a", "../a.wav", ("wren",))], "clips that are not files below the root (1): a"),
        ([ClipRow("a", "/etc/passwd", ("wren",))], "clips that are not files below the root (1): a"),
        ([ClipRow("a", "", ("wren",))], "clips that are not files below the root (1): a"),
        ([ClipRow("a", "a.wav", ("wren",), start=-1.0)], "clips with a negative or endless start or duration (1): a"),
        (
            [ClipRow("a", "a.wav", ("wren",), duration=float("nan"))],
            "clips with a negative or endless start or duration (1): a",
        ),
        (
            [ClipRow("a", "a.wav", ("wren",), start=1e308)],
            "clips with a negative or endless start or duration (1): a",
        ),
    ],
)
def test_a_clip_that_cannot_stand_is_named(tmp_path: Path, clips: list[ClipRow], message: str) -> None:
    with pytest.raises(CorpusError, match=re.escape(message)):
        columns_of(listing(*clips), tmp_path)


def test_more_classes_than_positions_of_labels_hold_are_refused(tmp_path: Path) -> None:
    classes = tuple(map(str, range(65537)))
    with pytest.raises(CorpusError, match=r"more than 65536 classes \(1\): 65537"):
        columns_of(listing(ClipRow("a", "a.wav", ("65536",)), classes=classes), tmp_path)
    found = columns_of(listing(ClipRow("a", "a.wav", ("65535",)), classes=classes[:-1]), tmp_path)
    assert found["labels"] == [[65535]]


def test_all_mistakes_come_at_once_the_first_ten_by_name(tmp_path: Path) -> None:
    clips = [ClipRow(f"{i:02}", f"{i}.wav", ("owl",)) for i in range(25)] + [ClipRow("x", "../x", ("wren", "tit"))]
    with pytest.raises(CorpusError) as error:
        columns_of(listing(*clips, ClipRow("x", "x", (), start=-1.0), classes=("wren", "tit", "tit")), tmp_path)
    message = str(error.value)
    assert "classes listed twice (1): tit" in message
    assert "'owl' (of 25 clips)" in message
    assert "clip ids listed twice (1): x" in message
    assert "not files below the root (1): x" in message
    assert "negative or endless start or duration (1): x" in message
    assert "label_kind is one (2): x (wren, tit), x (none)" in message

    clips = [ClipRow(f"{i:02}", f"{i}.wav", ()) for i in range(25)]
    with pytest.raises(CorpusError, match=r"\(25\): 00 \(none\), .*, 09 \(none\), and 15 more$"):
        columns_of(listing(*clips), tmp_path)


def test_a_corpus_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected a corpus with clips, found none listed"):
        columns_of(listing(), tmp_path)


# the memo of contents


def test_only_files_that_moved_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    settle(tmp_path)
    store = tmp_path / "store" / "content.sqlite"
    expected = [file_digest(path) for path in paths]
    assert content_digests(paths, store) == content.Contents(expected, 3)
    assert content_digests(paths, store) == content.Contents(expected, 0)

    paths[1].write_text("B")  # as long as before: told by its time alone
    again = content_digests(paths, store)
    assert (again.num_hashed, again.digests[1]) == (1, file_digest(paths[1]))
    paths[0].unlink()
    paths[2].unlink()
    paths[2].mkdir()
    assert content_digests(paths, store).digests == ["", file_digest(paths[1]), ""]


def test_a_file_that_has_only_just_changed_is_read_again(tmp_path: Path) -> None:
    path, store = tmp_path / "a", tmp_path / "content.sqlite"
    path.write_text("one")
    status = path.stat()
    first = content_digests([path], store)
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a change within one tick of a coarse clock
    assert content_digests([path], store).digests != first.digests


def test_a_damaged_memo_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, store = tmp_path / "a", tmp_path / "content.sqlite"
    path.write_text("one")
    settle(tmp_path)
    store.write_bytes(b"this is no database, " * 200)
    assert content_digests([path], store) == content.Contents([file_digest(path)], 1)
    assert "is damaged" in caplog.text
    assert content_digests([path], store).num_hashed == 0


def test_a_killed_run_keeps_the_batches_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_BATCH", 2)
    paths = [tmp_path / f"{i}" for i in range(5)]
    for path in paths:
        path.write_text(path.name)
    settle(tmp_path)
    store = tmp_path / "content.sqlite"

    def die_at_the_fourth(path: Path) -> str:
        if path.name == "3":
            raise KeyboardInterrupt
        return file_digest(path)

    with monkeypatch.context() as patch:
        patch.setattr(content, "file_digest", die_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            content_digests(paths, store)
    assert content_digests(paths, store).num_hashed == 3


def test_an_unreadable_file_is_counted_and_never_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, store = tmp_path / "a", tmp_path / "content.sqlite"
    path.write_text("one")
    settle(tmp_path)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(content, "file_digest", refuse)
        assert content_digests([path], store) == content.Contents([""], 0, (str(path),))
    assert "cannot be read: denied" in caplog.text
    assert content_digests([path], store).digests == [file_digest(path)]
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (1,)


def test_a_damaged_row_is_not_used(tmp_path: Path) -> None:
    path, store = tmp_path / "a", tmp_path / "content.sqlite"
    path.write_text("one")
    settle(tmp_path)
    expected = content_digests([path], store).digests
    with sqlite3.connect(store) as database:
        database.execute("UPDATE files SET digest = 'f' || substr(digest, 2)")
    assert content_digests([path], store) == content.Contents(expected, 1)
    assert content_digests([path], store) == content.Contents(expected, 0)


def test_a_forgotten_file_is_read_again(tmp_path: Path) -> None:
    paths, store = [tmp_path / "a", tmp_path / "b"], tmp_path / "content.sqlite"
    content.forget(paths, store)
    assert not store.exists()
    for path in paths:
        path.write_text(path.name)
    settle(tmp_path)
    content_digests(paths, store)
    content.forget(paths[:1], store)
    assert content_digests(paths, store).num_hashed == 1


def test_a_folder_that_may_not_be_listed_is_not_an_empty_one(tmp_path: Path, wav_corpus: Path) -> None:
    path, params = tmp_path / "clips.parquet", esc50_params(wav_corpus)
    message = rf"{wav_corpus}/audio: expected a folder that can be listed, found: Permission denied; see to"
    with forbidden(wav_corpus / "audio"), pytest.raises(CorpusError, match=message):
        refresh_manifest(params, path, tmp_path / "content.sqlite")
    (wav_corpus / "audio").chmod(0o755)
    assert refresh_manifest(params, path, tmp_path / "content.sqlite").num_missing == 0


def test_a_cache_of_digests_that_may_not_be_read_is_named_and_stays(tmp_path: Path) -> None:
    path, store = tmp_path / "a", tmp_path / "content.sqlite"
    path.write_text("one")
    content_digests([path], store)
    message = rf"{store}: expected a cache of digests that can be read and written, found: unable to open database file"
    with forbidden(store), pytest.raises(CorpusError, match=message):
        content_digests([path], store)
    assert store.exists()


def test_files_that_cannot_be_read_are_not_left_out_as_missing_ones_are(tmp_path: Path, wav_corpus: Path) -> None:
    path, store = tmp_path / "clips.parquet", tmp_path / "content.sqlite"
    params = esc50_params(wav_corpus)
    dropping = dataclasses.replace(esc50.list_clips(params), missing="drop")
    missing, unreadable = sorted((wav_corpus / "audio").iterdir())[:2]
    missing.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.corpora.esc50.list_clips", lambda _: dropping)
        with forbidden(unreadable):
            refresh = refresh_manifest(params, path, store)
    assert (refresh.num_clips, refresh.num_missing) == (11, 2)
    rows = {row["source"]: row["content"] for row in open_clips(path).columns.to_pylist()}
    assert rows[f"audio/{unreadable.name}"] == ""


def test_a_corpus_of_which_nothing_can_be_read_is_not_an_absent_one(tmp_path: Path, wav_corpus: Path) -> None:
    path, store, params = tmp_path / "clips.parquet", tmp_path / "content.sqlite", esc50_params(wav_corpus)
    refresh_manifest(params, path, store)

    def refuse(path: Path) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    store.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "file_digest", refuse)
        with pytest.raises(
            CorpusError, match=r"expected files that can be read, found 12 clips whose files cannot, audio/"
        ):
            refresh_manifest(params, path, store)


# the manifest on disk


def test_an_untouched_corpus_leaves_the_manifest_untouched(tmp_path: Path, wav_corpus: Path) -> None:
    settle(wav_corpus)
    path, store, params = tmp_path / "clips.parquet", tmp_path / "content.sqlite", esc50_params(wav_corpus)
    first = refresh_manifest(params, path, store)
    assert (first.num_clips, first.num_missing, first.num_hashed, first.written) == (12, 0, 12, True)
    before = path.stat()
    second = refresh_manifest(params, path, store)
    assert (second.num_hashed, second.written) == (0, False)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    for wav in wav_corpus.rglob("*.wav"):
        os.utime(wav, (1_600_000_000, 1_600_000_000))
    touched = refresh_manifest(params, path, store)
    assert (touched.num_hashed, touched.written) == (12, False)


def test_the_manifest_is_byte_identical_wherever_the_corpus_lies(tmp_path: Path, wav_corpus: Path) -> None:
    other = tmp_path / "elsewhere" / "deep"
    shutil.copytree(wav_corpus, other)
    table = other / "meta" / "esc50.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]) + "\n")
    for name, root in (("one", wav_corpus), ("two", other)):
        refresh_manifest(esc50_params(root), tmp_path / name, tmp_path / f"{name}.sqlite")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "one").read_bytes()


def test_one_changed_byte_moves_one_row(tmp_path: Path, wav_corpus: Path) -> None:
    path, store, params = tmp_path / "clips.parquet", tmp_path / "content.sqlite", esc50_params(wav_corpus)
    refresh_manifest(params, path, store)
    before = open_clips(path).list("content")
    victim = sorted((wav_corpus / "audio").iterdir())[3]
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert refresh_manifest(params, path, store).written
    after = open_clips(path).list("content")
    assert [a != b for a, b in zip(before, after, strict=True)].count(True) == 1


def test_missing_files_stay_in_the_manifest_and_are_told(
    tmp_path: Path, wav_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, params = tmp_path / "clips.parquet", esc50_params(wav_corpus)
    victim = sorted((wav_corpus / "audio").iterdir())[0]
    victim.unlink()
    refresh = refresh_manifest(params, path, tmp_path / "content.sqlite")
    assert (refresh.num_clips, refresh.num_missing) == (12, 1)
    assert open_clips(path).list("content").count("") == 1
    assert f"1 of 12 clips have no readable file below {wav_corpus}, audio/{victim.name} for one" in caplog.text


@pytest.mark.parametrize("rest", ["nothing", "table only"])
def test_without_audio_a_pulled_manifest_is_kept(
    tmp_path: Path, wav_corpus: Path, caplog: pytest.LogCaptureFixture, rest: str
) -> None:
    path, store, params = tmp_path / "clips.parquet", tmp_path / "content.sqlite", esc50_params(wav_corpus)
    refresh_manifest(params, path, store)
    before = path.read_bytes()
    shutil.rmtree(wav_corpus if rest == "nothing" else wav_corpus / "audio")
    caplog.set_level(logging.WARNING)
    refresh = refresh_manifest(params, path, store)
    assert (refresh.num_clips, refresh.num_missing, refresh.written) == (12, 0, False)
    assert path.read_bytes() == before
    assert "the audio is not on this machine" in caplog.text
    assert "spectrograms cannot be recomputed" in caplog.text


def test_without_audio_and_manifest_the_way_out_is_told(tmp_path: Path) -> None:
    params = esc50_params(tmp_path / "nowhere")
    with pytest.raises(CorpusError) as error:
        refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    message = str(error.value)
    assert f"{tmp_path / 'nowhere'}: expected the corpus `esc50` (audio/ with the clips" in message
    assert "found no such folder" in message
    assert f"{tmp_path / 'clips.parquet'}, found none" in message
    assert "corpus.root" in message
    assert "dvc pull" in message


def test_the_manifest_of_another_corpus_is_not_kept(tmp_path: Path, wav_corpus: Path) -> None:
    path, store = tmp_path / "clips.parquet", tmp_path / "content.sqlite"
    refresh_manifest(esc50_params(wav_corpus), path, store)
    shutil.rmtree(wav_corpus)
    with pytest.raises(CorpusError, match=r"found that of another corpus, esc50\."):
        refresh_manifest(esc50_params(wav_corpus, "meta/esc10.csv"), path, store)


def test_a_damaged_manifest_is_made_again(tmp_path: Path, wav_corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, store, params = tmp_path / "clips.parquet", tmp_path / "content.sqlite", esc50_params(wav_corpus)
    refresh_manifest(params, path, store)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refresh_manifest(params, path, store).written
    assert path.read_bytes() == whole
    assert str(path) in caplog.text


def test_the_demo_needs_no_audio(tmp_path: Path) -> None:
    params, path = demo_params(tmp_path / "demo"), tmp_path / "clips.parquet"
    first = refresh_manifest(params, path, tmp_path / "content.sqlite")
    assert (first.num_clips, first.num_missing, first.written) == (20, 0, True)
    before = path.read_bytes()
    shutil.rmtree(tmp_path / "demo")
    assert not refresh_manifest(params, path, tmp_path / "content.sqlite").written
    assert path.read_bytes() == before
    assert CLIPS.open(path).metadata["corpus"] == '{"clips_per_class": 2, "duration": 0.25, "kind": "demo", "seed": 0}'
