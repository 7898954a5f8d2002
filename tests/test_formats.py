"""Lengths and completeness of sound files: what a header leaves open is found out, and what is missing is named."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_waveform
from sounds import case, encode, with_data_size, without_count, without_total

from pipeline.artifacts.spectrogram import Mix
from pipeline.execution.code import project_sources, reach
from pipeline.spectrogram import decoding
from pipeline.spectrogram.containers import find_samples
from pipeline.spectrogram.decoding import ForwardReader, decode
from pipeline.spectrogram.mp3 import Mp3Fault, Mp3Scan, scan_frames
from pipeline.spectrogram.sources import BadClip

RATE = 16000


def _decode(
    path: Path, data: bytes, *, start: float = 0.0, duration: float = 0.0, max_duration: float = 60.0
) -> np.ndarray:
    path.write_bytes(data)
    return decode(path, start=start, duration=duration, sample_rate=RATE, max_duration=max_duration)


def _whole(container: str, subtype: str, seconds: float = 2.0) -> bytes:
    return encode(make_waveform("noise", seconds, RATE), RATE, container, subtype)


def _forward(path: Path) -> np.ndarray:
    reader, blocks = ForwardReader(path), []
    while len(block := reader.read()):
        blocks.append(block[:, 0])
    reader.close()
    assert sum(map(len, blocks)) == reader.num_samples
    return np.concatenate(blocks)


def _pcm(size: int, riff_size: int | None = None) -> bytes:
    return with_data_size(_whole("WAV", "PCM_16"), size, riff_size)


# Lengths that a header does not tell, or tells wrongly, and the seconds that there are.
UNTOLD = {
    "WAV of a pipe, all bits set": lambda: _pcm(0xFFFFFFFF, 0xFFFFFFFF),
    "WAV of a pipe, by SoX": lambda: _pcm(0x7FFFF000, 0x7FFFF024),
    "WAV of a pipe, by arecord": lambda: _pcm(0x80000000, 0x80000024),
    "WAV whose writer was killed": lambda: _pcm(0, 36),
    "WAV whose writer was killed before": lambda: _pcm(0, 0),
    "WAV of floats": lambda: with_data_size(_whole("WAV", "FLOAT"), 0, 36),
    "FLAC of a pipe": lambda: without_total(_whole("FLAC", "PCM_16")),
    "chained Ogg": lambda: 2 * _whole("OGG", "VORBIS", 1.0),
    "chained Opus": lambda: 4 * _whole("OGG", "OPUS", 0.5),
}


@pytest.mark.parametrize("make", UNTOLD.values(), ids=UNTOLD.keys())
def test_a_length_that_the_header_does_not_tell_is_found(
    tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_BLOCK", 5000)
    path, data = tmp_path / "a.sound", make()  # type: ignore[operator]
    waveform = _decode(path, data)
    assert len(waveform) == 2 * RATE
    assert len(_forward(path)) / ForwardReader(path).rate == 2.0
    np.testing.assert_allclose(_decode(path, data, start=1.25, duration=0.5), waveform[20000:28000], atol=1e-6)
    np.testing.assert_allclose(_decode(path, data, start=1.25), waveform[20000:], atol=1e-6)
    with pytest.raises(BadClip, match=r"too_long: .*expected at most 1.9 s, found"):
        _decode(path, data, max_duration=1.9)
    with pytest.raises(BadClip, match=r"truncated: .*expected sound to 2\.500 s, found the end at 2\.000 s"):
        _decode(path, data, start=1.5, duration=1.0)
    with pytest.raises(BadClip, match=r"too_short: .*expected sound at 2\.500 s, found the end at 2\.000 s"):
        _decode(path, data, start=2.5, duration=1.0)


def test_the_samples_are_those_of_the_file_that_tells_its_length(tmp_path: Path) -> None:
    for whole, other in (
        (_whole("WAV", "PCM_16"), _pcm(0, 36)),
        (_whole("FLAC", "PCM_16"), without_total(_whole("FLAC", "PCM_16"))),
    ):
        np.testing.assert_array_equal(_decode(tmp_path / "a", other), _decode(tmp_path / "b", whole))


def test_an_empty_wav_with_other_chunks_stays_empty(tmp_path: Path) -> None:
    empty = encode(np.zeros(0), RATE, "WAV", "PCM_16") + b"LIST\x04\0\0\0INFO"
    empty = empty[:4] + (len(empty) - 8).to_bytes(4, "little") + empty[8:]
    with pytest.raises(BadClip, match=r"empty: .*found a header without samples"):
        _decode(tmp_path / "a.wav", empty)


def test_an_unfinished_stream_is_truncated_where_its_length_is_unknown(tmp_path: Path) -> None:
    data = without_total(_whole("FLAC", "PCM_16"))
    with pytest.raises(BadClip, match=r"truncated: .*expected samples to the end of the file, found"):
        _decode(tmp_path / "a.flac", data[: len(data) // 2])


def test_chained_streams_of_different_kinds_are_refused_by_name(tmp_path: Path) -> None:
    data = _whole("OGG", "VORBIS") + encode(make_waveform("noise", 1.0, 22050), 22050, "OGG", "VORBIS")
    message = r"unreadable: .*expected streams of one rate, found 1 channels at 16000 Hz, 1 channels at 22050 Hz; cut"
    with pytest.raises(BadClip, match=message):
        _decode(tmp_path / "a.ogg", data)


CONTAINERS = [
    ("WAV", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AIFF", "ULAW"),
    ("AU", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("NIST", "PCM_16"),
    ("VOC", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("SVX", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
@pytest.mark.parametrize("kept", [0.6, 0.98])
def test_a_cut_file_is_truncated_in_every_container(tmp_path: Path, container: str, subtype: str, kept: float) -> None:
    data = _whole(container, subtype)
    assert len(_decode(tmp_path / "whole", data)) >= 2 * RATE
    with pytest.raises(BadClip) as caught:
        _decode(tmp_path / "cut", data[: int(kept * len(data))])
    assert caught.value.reason == "truncated"
    with pytest.raises(BadClip) as caught:
        _forward(tmp_path / "cut")
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("container", "subtype"),
    [pair for pair in CONTAINERS if pair[1].startswith("PCM") and pair[0] not in ("CAF", "FLAC")],
)
def test_a_few_samples_too_many_in_a_header_cost_nothing(tmp_path: Path, container: str, subtype: str) -> None:
    """Of PCM in all containers but CAF, which libsndfile does not open then."""
    data = _whole(container, subtype)
    samples = find_samples(lambda offset, size: data[offset : offset + size], len(data))
    assert samples is not None
    end = min(len(data), samples.start + (samples.declared or 0))
    few, many = 8, 40  # samples, of which 16 are a millisecond
    size = 3 if subtype == "PCM_24" else 2
    assert 2 * RATE - few - 1 <= len(_decode(tmp_path / "few", data[: end - few * size])) <= 2 * RATE - few
    with pytest.raises(BadClip, match="truncated"):
        _decode(tmp_path / "many", data[: end - many * size])


def test_a_part_before_the_cut_can_be_used(tmp_path: Path) -> None:
    data = _whole("AIFF", "PCM_16")
    cut = data[: int(0.6 * len(data))]
    np.testing.assert_array_equal(
        _decode(tmp_path / "cut", cut, start=0.5, duration=0.5), _decode(tmp_path / "whole", data)[8000:16000]
    )


@pytest.mark.parametrize("rate", [1000, 2000, 250_000, 384_000])
def test_rates_of_whales_and_bats_are_read(tmp_path: Path, rate: int) -> None:
    data = encode(make_waveform("tone", 1.0, rate, frequency=300.0), rate, "WAV", "PCM_16")
    waveform = _decode(tmp_path / "a.wav", data)
    assert len(waveform) == RATE
    np.testing.assert_allclose(waveform[2000:-2000], make_waveform("tone", 1.0, frequency=300.0)[2000:-2000], atol=2e-3)


# MP3: a walk along the headers of frames


def _mp3(rate: int = 44100, seconds: float = 4.0, channels: int = 1, mode: str = "CONSTANT") -> bytes:
    file, samples = io.BytesIO(), np.stack([make_waveform("chirp", seconds, rate, frequency=5000.0)] * channels, axis=1)
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return file.getvalue()


def _scan(data: bytes) -> Mp3Scan:
    scan = scan_frames(io.BytesIO(data).read)
    assert scan is not None
    return scan


KINDS = [
    (rate, channels, mode)
    for rate in (8000, 22050, 44100, 48000)
    for channels in (1, 2)
    for mode in ("CONSTANT", "AVERAGE", "VARIABLE")
]


@pytest.mark.parametrize(("rate", "channels", "mode"), KINDS)
def test_frames_of_whole_files_are_counted_without_a_fault(tmp_path: Path, rate: int, channels: int, mode: str) -> None:
    data = _mp3(rate, 1.5, channels, mode)
    scan = _scan(data)
    assert scan.fault is None
    assert scan.declared == scan.num_frames
    assert 0 <= scan.num_samples / rate - 1.5 < 0.2  # delays of the coder
    bare = without_count(data)
    for changed in (
        bare,
        b"ID3\x04\0\0\0\0\x01\x05" + bytes(133) + bare,
        bare + b"TAG" + bytes(125),
        bare + bytes(3000),
    ):
        found = _scan(changed)
        assert (found.fault, found.num_frames, found.declared) == (None, scan.num_frames, None)
        assert abs(len(_decode(tmp_path / "a.mp3", changed)) / RATE - scan.num_samples / rate) < 0.1
    assert _scan(bare + bare).num_frames == 2 * scan.num_frames
    assert len(_forward(tmp_path / "a.mp3"))


def test_files_that_follow_each_other_are_one_sound(tmp_path: Path) -> None:
    data = _mp3()
    assert 7.9 < len(_decode(tmp_path / "a.mp3", data + without_count(data))) / RATE < 8.2


def test_a_header_that_counts_its_own_frame_costs_nothing(tmp_path: Path) -> None:
    data = _mp3()
    at = data.index(b"Info") + 8
    counted = data[:at] + (int.from_bytes(data[at : at + 4], "big") + 1).to_bytes(4, "big") + data[at + 4 :]
    assert abs(len(_decode(tmp_path / "a.mp3", counted)) / RATE - 4.0) < 0.1


def test_damage_in_an_mp3_is_named(tmp_path: Path) -> None:
    data, generator = _mp3(), np.random.default_rng(0)
    for bare in (data, without_count(data)):
        for at in generator.integers(len(bare) // 4, 3 * len(bare) // 4, 10).tolist():
            changed = bytearray(bare)
            changed[at : at + 1000] = bytes(1000)
            for damaged in (bytes(changed), bare[:at] + bare[at + 300 :], bare[:at] + generator.bytes(300) + bare[at:]):
                with pytest.raises(
                    BadClip, match=r"damaged: .*expected frames that follow each other, found"
                ) as caught:
                    _decode(tmp_path / "a.mp3", damaged)
                assert "found None" not in str(caught.value)


def test_frames_that_are_missing_leave_a_gap_in_the_reservoir() -> None:
    """Where data begin is known for half of the frames: others begin in bytes that nobody misses."""
    file, generator = io.BytesIO(), np.random.default_rng(0)
    loudness = np.repeat(generator.uniform(0, 1, 40) ** 4, 4410).astype(np.float32)
    soundfile.write(file, make_waveform("noise", 4.0, 44100) * loudness, 44100, format="MP3", bitrate_mode="CONSTANT")
    bare = without_count(file.getvalue())
    assert _scan(bare).fault is None
    frames = [match.start() for match in re.finditer(re.escape(bare[:2]), bare)]
    faults = [_scan(bare[: frames[at]] + bare[frames[at + 3] :]).fault for at in range(5, 135)]
    assert sum(fault is not None and "whose data begin" in fault.found for fault in faults) > 40


def test_a_cut_mp3_is_truncated_with_and_without_a_count() -> None:
    data = _mp3()
    for bare in (data, without_count(data)):
        fault = _scan(bare[: int(0.7 * len(bare))]).fault
        assert fault is not None
        assert fault.cut
    frame = data.rindex(b"\xff\xfb")
    assert _scan(data[:frame]).fault is None  # one frame may be counted too many
    before = data.rindex(b"\xff\xfb", 0, data.rindex(b"\xff\xfb", 0, frame))
    scan = _scan(data[:before])
    assert scan.fault == Mp3Fault(cut=True, found=f"{scan.num_frames} frames of {scan.declared}")


def test_bytes_without_frames_are_no_mp3() -> None:
    assert scan_frames(io.BytesIO(np.random.default_rng(0).bytes(100_000)).read) is None
    assert scan_frames(io.BytesIO(b"").read) is None


# channels and silence


def _stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    return encode(np.stack([left, right], axis=1), RATE, "WAV", "FLOAT")


@pytest.mark.parametrize("residue", [0.0, 1e-5])
def test_channels_that_cancel_are_named_as_such(tmp_path: Path, residue: float) -> None:
    noise = make_waveform("noise", 1.0)
    data = _stereo(noise, -noise + np.float32(residue) * make_waveform("noise", 1.0, seed=1))
    with pytest.raises(
        BadClip, match=r"cancelling: .*channels that cancel each other.*set spectrogram\.mix to left, right"
    ) as caught:
        _decode(tmp_path / "a.wav", data)
    assert "all 0" not in caught.value.message


@pytest.mark.parametrize(("mix", "channel"), [("left", 0), ("right", 1), ("loudest", 1), ("mean", None)])
def test_a_mix_is_the_channel_that_it_names(tmp_path: Path, mix: Mix, channel: int | None) -> None:
    channels = np.stack([0.5 * make_waveform("noise", 1.0), make_waveform("noise", 1.0, seed=1)], axis=1)
    path = tmp_path / "a.wav"
    soundfile.write(path, channels, RATE, subtype="FLOAT")
    expected = channels.mean(axis=1) if channel is None else channels[:, channel]
    options = {"start": 0.0, "duration": 0.0, "sample_rate": RATE, "max_duration": 2.0}
    np.testing.assert_allclose(decode(path, **options, mix=mix), expected, atol=1e-7)
    soundfile.write(path, channels[:, 0], RATE, subtype="FLOAT")
    np.testing.assert_array_equal(decode(path, **options, mix=mix), channels[:, 0])


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_is_silence_and_may_be_kept(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(RATE, value), RATE)
    options = {"start": 0.0, "duration": 0.0, "sample_rate": RATE, "max_duration": 2.0}
    with pytest.raises(BadClip, match=rf"silent: .*16000 samples that are all {value:g}"):
        decode(path, **options)
    assert len(decode(path, **options, allow_silence=True)) == RATE


def test_what_is_remembered_of_a_clip_follows_from_all_that_judges_it() -> None:
    """So a clip that was refused by an earlier release is tried again."""
    found = reach(project_sources(), [("pipeline.spectrogram.computing", "compute_clip")])
    assert {"soundfile", "soxr", "numpy"} <= set(found.packages)
    judges = ("containers", "ffmpeg", "mixing", "mp3", "ogg", "readers", "sources")
    assert {f"pipeline.spectrogram.{name}" for name in judges} <= {module for module, _ in found.definitions}


# the files that were found to be read wrongly


@pytest.mark.parametrize(
    ("name", "seconds", "tolerance"),
    [
        ("cbr_44100_128k.mp3", 10.03, 0.03),
        ("lame_vbr4_no_xing.mp3", 10.03, 0.03),
        ("datalen_sox_pipe_7ffff000.wav", 2.0, 0.0),
        ("datalen_zero.wav", 2.0, 0.0),
        ("flac_pipe_total0.flac", 2.0, 0.0),
        ("ogg_chained.ogg", 4.0, 0.0),
    ],
)
def test_cases_have_their_length(name: str, seconds: float, tolerance: float) -> None:
    waveform = decode(case(name), start=0.0, duration=0.0, sample_rate=RATE, max_duration=60.0)
    assert abs(len(waveform) / RATE - seconds) <= tolerance


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cut60_a.aiff", "truncated"), ("cut60_a.rf64", "truncated"), ("stereo_antiphase_float.wav", "cancelling")],
)
def test_cases_are_refused_with_their_reason(name: str, reason: str) -> None:
    with pytest.raises(BadClip) as caught:
        decode(case(name), start=0.0, duration=0.0, sample_rate=RATE, max_duration=60.0)
    assert caught.value.reason == reason
