"""Decoding: analytic truth for rates, channels and depths, and one crafted file per reason to fail."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import make_waveform
from faults import failing, forbidden
from test_parquet_audio import write_parquet

from pipeline.artifacts.files import file_digest
from pipeline.spectrogram import decoding
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.sources import BadClip, PackedAudio


def _decode(path: Path, **changed: Any) -> np.ndarray:
    settings = {"start": 0.0, "duration": 0.0, "sample_rate": 16000, "max_duration": 10.0, "min_samples": 400}
    return decode(path, **(settings | changed))  # type: ignore[arg-type]


def _pack(path: Path) -> tuple[Path, PackedAudio]:
    """Put a file's bytes between others, as a tar does; what stands around them must not matter."""
    data, tar = path.read_bytes(), path.with_suffix(".tar")
    tar.write_bytes(b"#" * 777 + data + data[:2000] + b"#" * 777)
    return tar, PackedAudio(path.name, 777, len(data), file_digest(path))


def _write(path: Path, waveform: np.ndarray, sample_rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, waveform, sample_rate, subtype=subtype)
    return path


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100, 48000, 192000])
def test_a_tone_at_any_rate_is_the_same_tone_at_16_khz(tmp_path: Path, sample_rate: int) -> None:
    path = _write(tmp_path / "tone.wav", make_waveform("tone", 1.0, sample_rate), sample_rate, "FLOAT")
    waveform = _decode(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16000,)
    middle = slice(1000, -1000)  # a resampler rings at the ends
    np.testing.assert_allclose(waveform[middle], make_waveform("tone", 1.0)[middle], atol=2e-4)


@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_mono_is_the_mean_of_the_channels(tmp_path: Path, num_channels: int) -> None:
    channels = np.stack([make_waveform("noise", seed=seed) for seed in range(num_channels)], axis=1)
    np.testing.assert_allclose(
        _decode(_write(tmp_path / "a.wav", channels, subtype="FLOAT")), channels.mean(axis=1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 1 / 128),
        ("a.wav", "PCM_16", 1 / 32768),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.flac", "PCM_16", 1 / 32768),
        ("a.flac", "PCM_24", 1e-6),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_and_depth_gives_the_same_waveform(
    tmp_path: Path, name: str, subtype: str, tolerance: float
) -> None:
    waveform = make_waveform("tone", 1.0)
    decoded = _decode(_write(tmp_path / name, waveform, subtype=subtype))
    assert decoded.shape == waveform.shape
    middle = slice(2000, -2000)  # lossy coders smear the ends
    np.testing.assert_allclose(decoded[middle], waveform[middle], atol=tolerance)


def test_only_the_part_asked_for_is_returned(tmp_path: Path) -> None:
    waveform = make_waveform("noise", 2.0)
    path = _write(tmp_path / "a.wav", waveform, subtype="FLOAT")
    np.testing.assert_array_equal(_decode(path, start=0.5, duration=0.25), waveform[8000:12000])
    np.testing.assert_array_equal(_decode(path, start=1.5), waveform[24000:])
    np.testing.assert_array_equal(_decode(path, start=1.5, duration=0.5005), waveform[24000:])  # a rounded table entry


def test_a_long_file_is_no_obstacle_to_a_short_part(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("noise", 3.0))
    assert _decode(path, start=1.0, duration=1.0, max_duration=1.0).shape == (16000,)


def test_a_recording_through_a_pipe_knows_no_length_and_is_whole(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("tone"))
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff" * 4
    path.write_bytes(data)
    assert _decode(path).shape == (8000,)


def _missing(folder: Path) -> Path:
    return folder / "nothing.wav"


def _folder(folder: Path) -> Path:
    return folder


def _empty(folder: Path) -> Path:
    (folder / "a.wav").touch()
    return folder / "a.wav"


def _headless(folder: Path) -> Path:
    (folder / "a.wav").write_text("These are not the samples you are looking for.\n")
    return folder / "a.wav"


def _no_samples(folder: Path) -> Path:
    return _write(folder / "a.wav", np.zeros(0))


def _odd_rate(folder: Path) -> Path:
    return _write(folder / "a.wav", make_waveform("tone", 1.0, 900), 900)


def _short(folder: Path) -> Path:
    return _write(folder / "a.wav", make_waveform("tone")[:399])


def _long(folder: Path) -> Path:
    return _write(folder / "a.wav", make_waveform("tone", 10.01))


def _nan(folder: Path) -> Path:
    waveform = make_waveform("tone")
    waveform[100] = np.nan
    return _write(folder / "a.wav", waveform, subtype="FLOAT")


def _infinite(folder: Path) -> Path:
    waveform = make_waveform("tone")
    waveform[100] = np.inf
    return _write(folder / "a.wav", waveform, subtype="FLOAT")


def _silent(folder: Path) -> Path:
    return _write(folder / "a.wav", make_waveform("silence"))


@pytest.mark.parametrize(
    ("make", "reason", "message"),
    [
        (_missing, "missing", "expected a file, found none"),
        (_folder, "missing", "found a folder"),
        (_empty, "empty", "0 bytes"),
        (_no_samples, "empty", "header without samples"),
        (_headless, "unreadable", "expected WAV, FLAC, OGG or MP3"),
        (_odd_rate, "unreadable", "expected a rate of 1000 to 384000 Hz, found 900 Hz"),
        (_short, "too_short", "at least 400 samples at 16000 Hz, found 399"),
        (_long, "too_long", "at most 10.0 s, found 10.0 s"),
        (_nan, "not_finite", "found 1 NaN or infinite"),
        (_infinite, "not_finite", "found 1 NaN or infinite"),
        (_silent, "silent", "8000 samples that are all 0"),
    ],
)
def test_a_bad_file_fails_with_its_reason(tmp_path: Path, make: object, reason: str, message: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(BadClip) as caught:
        _decode(path)
    assert caught.value.reason == reason
    assert message in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")],
)
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_file_that_lost_its_end_is_truncated(tmp_path: Path, name: str, subtype: str, kept: float) -> None:
    path = _write(tmp_path / name, make_waveform("noise", 3.0), subtype=subtype)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BadClip) as caught:
        _decode(path)
    assert caught.value.reason == "truncated"


# members of tar files


FORMATS = [("a.wav", "PCM_16"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
@pytest.mark.parametrize("part", [{}, {"start": 0.25, "duration": 0.5}])
def test_a_member_decodes_as_the_file_does(tmp_path: Path, name: str, subtype: str, part: dict[str, float]) -> None:
    path = _write(tmp_path / name, make_waveform("noise", 1.0, 48000), 48000, subtype)
    tar, member = _pack(path)
    np.testing.assert_array_equal(_decode(tar, member=member, **part), _decode(path, **part))


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_a_member_that_was_packed_without_its_end_is_truncated(tmp_path: Path, name: str, subtype: str) -> None:
    path = _write(tmp_path / name, make_waveform("noise", 3.0), subtype=subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    tar, member = _pack(path)
    with pytest.raises(BadClip, match=rf"truncated: .*a\.tar/{name}"):
        _decode(tar, member=member)


@pytest.mark.parametrize("make", [_empty, _no_samples, _headless, _short, _long, _nan, _silent])
def test_a_bad_member_fails_with_the_reason_of_the_file(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    tar, member = _pack(path)
    with pytest.raises(BadClip) as of_file:
        _decode(path)
    with pytest.raises(BadClip) as of_member:
        _decode(tar, member=member)
    assert of_member.value.reason == of_file.value.reason
    assert of_member.value.message == of_file.value.message.replace(str(path), f"{tar}/{path.name}")


def test_a_member_out_of_its_place_is_never_decoded(tmp_path: Path) -> None:
    tar, member = _pack(_write(tmp_path / "a.wav", make_waveform("tone", 1.0)))
    other = _write(tmp_path / "b.wav", make_waveform("noise", 1.0)).read_bytes()
    whole = tar.read_bytes()
    tar.write_bytes(whole[:777] + other + whole[777 + len(other) :])
    with pytest.raises(BadClip, match=r"moved: .*a\.tar/a\.wav: expected the bytes that the manifest names"):
        _decode(tar, member=member)
    tar.write_bytes(whole[:1000])
    with pytest.raises(BadClip, match=r"truncated: .*found 223: the tar was cut"):
        _decode(tar, member=member)
    tar.unlink()
    with pytest.raises(BadClip, match=r"missing: .*a\.tar: expected a file, found none"):
        _decode(tar, member=member)


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_that_fails_in_the_middle_is_not_a_truncated_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, subtype: str, packed: bool
) -> None:
    """libsndfile takes the error for the end of the file, and would say so of the content."""
    path = _write(tmp_path / name, make_waveform("noise", 5.0, 48000), 48000, subtype)
    place, member = _pack(path) if packed else (path, None)
    message = rf"read_error: .*{name}: expected a file that can be read, found: Input/output error; see to"
    with failing(place, monkeypatch, after=20000), pytest.raises(BadClip, match=message):
        _decode(place, member=member)
    assert len(_decode(place, member=member)) == 80000


def test_a_file_without_permission_is_named_as_such(tmp_path: Path) -> None:
    path = _write(tmp_path / "folder.wav", make_waveform("tone"))
    for part in (path, path.parent):
        with (
            forbidden(part),
            pytest.raises(BadClip, match=r"read_error: .*, found: Permission denied; see to the perm"),
        ):
            _decode(path)


def test_a_file_with_another_content_than_the_manifest_names_is_not_decoded(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("noise", 2.0))
    content = file_digest(path)
    parts = {"start": 0.5, "duration": 0.25}
    np.testing.assert_array_equal(_decode(path, content=content), _decode(path))
    np.testing.assert_array_equal(_decode(path, content=content, **parts), _decode(path, **parts))
    status = path.stat()
    _write(path, make_waveform("noise", 2.0, seed=1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BadClip, match=r"moved: .*a\.wav: expected the bytes that the manifest names, found others"):
        _decode(path, content=content, **parts)


def test_a_file_that_changes_while_it_is_decoded_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("noise", 2.0))
    content, read = file_digest(path), decoding._read

    def read_and_cut(*arguments: Any) -> np.ndarray:
        os.truncate(path, 100)
        return read(*arguments)

    monkeypatch.setattr(decoding, "_read", read_and_cut)
    with pytest.raises(BadClip, match=r"moved: "):
        _decode(path, content=content)


def test_a_long_recording_is_digested_once_for_all_of_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("noise", 2.0))
    content, digest, digested = file_digest(path), hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: digested.append(1) or digest(*arguments))
    for start in (0.0, 0.5, 1.0):
        _decode(path, content=content, start=start, duration=0.25)
    assert len(digested) == 1


def test_a_part_beyond_the_end_fails(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", make_waveform("tone", 1.0))
    with pytest.raises(BadClip, match=r"truncated: .*expected sound to 1.500 s, found the end at 1.000 s"):
        _decode(path, start=0.5, duration=1.0)
    with pytest.raises(BadClip, match=r"too_short: .*expected sound at 1.000 s, found the end at 1.000 s"):
        _decode(path, start=1.0, duration=0.5)


@pytest.mark.parametrize("suffix", [".raw", ".gsm", ".vox", ".sd2"])
def test_a_file_is_what_its_content_says_and_not_its_suffix(tmp_path: Path, suffix: str) -> None:
    """libsndfile takes the suffix for the format of files without a header: any bytes named .gsm are sound to it."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(BadClip, match=rf"a\{suffix}: expected WAV, FLAC, OGG or MP3, found"):
        _decode(path)
    soundfile.write(tmp_path / "a.wav", make_waveform("tone"), 16000)
    shutil.copy(tmp_path / "a.wav", path)
    assert len(_decode(path)) == 8000


@pytest.mark.slow
def test_every_clip_of_esc10_decodes(esc10_root: Path) -> None:
    paths = sorted((esc10_root / "audio").glob("*.ogg"))
    assert len(paths) == 400
    lengths = [len(_decode(path)) for path in paths]
    assert (
        sum(79000 < length < 81000 for length in lengths) == 394
    )  # five seconds; six clips are published longer or shorter
    assert (min(lengths), max(lengths)) == (58305, 115844)


def test_a_row_of_a_parquet_file_is_decoded_as_the_file_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.flac", make_waveform("noise"))
    rows, expected = tmp_path / "a.parquet", _decode(path)
    write_parquet(rows, [("other.flac", b"other"), ("a.flac", path.read_bytes())])
    place = PackedAudio("a.flac", 1, path.stat().st_size, file_digest(path))
    np.testing.assert_array_equal(_decode(rows, member=place), expected)


def test_a_row_that_is_another_clips_now_is_moved(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.flac", make_waveform("noise"))
    rows = write_parquet(tmp_path / "a.parquet", [("a.flac", path.read_bytes()), ("b.flac", b"other")])
    for row in (1, 2):
        with pytest.raises(BadClip, match=r"moved: .*a\.parquet/a\.flac: .*the Parquet file was changed; `dvc repro`"):
            _decode(rows, member=PackedAudio("a.flac", row, path.stat().st_size, file_digest(path)))
    rows.write_bytes(b"no longer Parquet")
    with pytest.raises(BadClip, match="moved"):
        _decode(rows, member=PackedAudio("a.flac", 0, path.stat().st_size, file_digest(path)))
