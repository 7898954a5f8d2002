"""Folders and names of files as labels: what is read, what is left out, and what is said of it."""

import logging
from pathlib import Path, PurePosixPath
from typing import Any

import layouts
import pytest
from test_corpora import LIMITS

from pipeline.corpora import folder, pattern
from pipeline.corpora.walking import audio_files
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params


def folder_params(root: Path, *levels: str) -> folder.Params:
    values = {"kind": "folder", "root": str(root), "levels": list(levels or ["label"]), "licence": "ours"}
    return validate_params(folder.Params, values | LIMITS | {"ignore": ["_background_noise_"]}, "corpus")


def pattern_params(root: Path, text: str, **settings: Any) -> pattern.Params:
    values = {"kind": "pattern", "root": str(root), "pattern": text, "ignore": [], "licence": "ours"}
    return validate_params(pattern.Params, values | LIMITS | settings, "corpus")


def test_a_folder_is_a_class_and_what_lies_beside_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write_folder(tmp_path)
    listing = folder.list_clips(folder_params(tmp_path))
    assert listing.classes == ("noise", "tone")
    assert len(listing.clips) == 12
    clip = listing.clips[0]
    assert (clip.clip_id, clip.source, clip.labels) == ("noise/deeper/0.wav", "noise/deeper/0.wav", ("noise",))
    assert listing.left_out == {"hidden": 2, "ignored": 1, "not_audio": 1, "stray": 1}
    assert (
        "left out 1 files that do not lie in <label>/: stray.wav; corpus.levels says what folders mean" in caplog.text
    )


def test_levels_of_folders_are_folds_and_groups(tmp_path: Path) -> None:
    for name in ("train/wren/bird1/a.wav", "test/tit/bird2/x/b.MP3"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    clips = folder.list_clips(folder_params(tmp_path, "fold", "label", "group")).clips
    assert [(clip.fold, *clip.labels, clip.group) for clip in clips] == [
        ("test", "tit", "bird2"),
        ("train", "wren", "bird1"),
    ]
    assert folder.list_clips(folder_params(tmp_path, "other", "label")).classes == ("tit", "wren")


@pytest.mark.parametrize("levels", [["fold"], ["label", "label"], ["label", "group", "group"]])
def test_levels_without_one_label_are_refused(tmp_path: Path, levels: list[str]) -> None:
    with pytest.raises(ParamsError, match=r"corpus\.levels: expected `label` once"):
        folder_params(tmp_path, *levels)


def test_folders_that_cannot_be_walked(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="gone: expected a folder of audio, found No such file"):
        audio_files(tmp_path / "gone")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.wav").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert audio_files(tmp_path).paths == [PurePosixPath("a/1.wav")]


def test_spoken_digits_are_read_by_the_names_of_their_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speakers = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    for digit in range(10):
        for speaker in speakers:
            for take in range(50):
                (tmp_path / f"{digit}_{speaker}_{take}.wav").touch()
    (tmp_path / "hum.wav").touch()
    listing = pattern.list_clips(pattern_params(tmp_path, r"(?P<label>\d)_(?P<group>[a-z]+)_\d+"))
    assert len(listing.clips) == 3000
    assert listing.classes == tuple("0123456789")
    assert {clip.group for clip in listing.clips} == set(speakers)
    assert listing.left_out["unmatched"] == 1
    assert r"left out 1 files that (?P<label>\d)_(?P<group>[a-z]+)_\d+ does not match: hum.wav" in caplog.text


def test_a_pattern_with_a_slash_is_matched_with_the_whole_path(tmp_path: Path) -> None:
    (tmp_path / "set 1").mkdir()
    (tmp_path / "set 1" / "wren-3.flac").touch()
    clips = pattern.list_clips(pattern_params(tmp_path, r"set (?P<fold>\d)/(?P<label>[a-z]+)-\d")).clips
    assert [(clip.clip_id, clip.labels, clip.fold) for clip in clips] == [("set 1/wren-3.flac", ("wren",), "1")]


def test_a_pattern_that_nothing_matches_stops_with_an_example(tmp_path: Path) -> None:
    layouts.write_pattern(tmp_path)
    with pytest.raises(
        CorpusError, match=r"expected files whose names match .*, found none among 13, 3_speaker0_0 for one"
    ):
        pattern.list_clips(pattern_params(tmp_path, "(?P<label>[a-z]+)-1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(?P<label>", "expected a regular expression, found"),
        ("[a-z]+", r"expected the named group \(\?P<label>...\), and perhaps group and fold, found none"),
        ("(?P<label>a)(?P<speaker>b)", "found label, speaker"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        pattern_params(tmp_path, text)


def test_what_is_left_out_is_named_up_to_five(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        (tmp_path / f"{number}.wav").touch()
    with caplog.at_level(logging.WARNING):
        folder.list_clips(folder_params(tmp_path))
    assert "0.wav, 1.wav, 2.wav, 3.wav, 4.wav, and 3 more; corpus.levels" in caplog.text
