"""Formats of phones, browsers and cameras, read by FFmpeg: the sound, its length, its end, and no other file."""

import io
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_waveform

from pipeline.spectrogram.decoding import ForwardReader, decode
from pipeline.spectrogram.ffmpeg import find_container
from pipeline.spectrogram.sources import BadClip

RATE = 16000
SECONDS = 2.0

# suffix, FFmpeg's container and coder, rate in Hz
FORMATS = [
    ("m4a", "ipod", "aac", 32000),
    ("m4a", "ipod", "alac", 32000),
    ("mp4", "mp4", "aac", 44100),
    ("mov", "mov", "aac", 48000),
    ("3gp", "3gp", "libopencore_amrnb", 8000),
    ("amr", "amr", "libopencore_amrnb", 8000),
    ("caf", "caf", "adpcm_ima_qt", 32000),
    ("webm", "webm", "libopus", 48000),
    ("mka", "matroska", "aac", 32000),
    ("wma", "asf", "wmav2", 44100),
    ("aac", "adts", "aac", 32000),
    ("avi", "avi", "mp2", 32000),
    ("flv", "flv", "aac", 44100),
    ("ts", "mpegts", "aac", 32000),
]


@pytest.fixture(scope="module")
def av() -> Any:
    return pytest.importorskip("av", reason="needs PyAV, the extra `formats`")


def _encode(av: Any, container: str, coder: str, rate: int, *, video: bool = False, channels: int = 1) -> bytes:
    """Return two seconds of a tone of 440 Hz; with `video` also of grey pictures."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(coder, rate=rate)
        stream.layout = layout
        stream.bit_rate = {"libopencore_amrnb": 12200}.get(coder, 64000)
        pictures = output.add_stream("mpeg4", rate=10) if video else None
        if pictures:
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
            for _ in range(30):
                picture = av.VideoFrame.from_ndarray(np.full((72, 64), 128, np.uint8), format="yuv420p")
                output.mux(pictures.encode(picture))
            output.mux(pictures.encode(None))
        for frame in _frames(av, stream, rate, layout):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _frames(av: Any, stream: Any, rate: int, layout: str) -> Iterator[Any]:
    """Yield frames of a coder's size."""
    samples = make_waveform("tone", SECONDS, rate, frequency=440.0)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler, fifo = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate), av.AudioFifo()
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        fifo.write(part)
    while part := fifo.read(stream.codec_context.frame_size or 1024) or fifo.read():
        yield part


def _decode(path: Path, data: bytes, **part: float) -> np.ndarray:
    path.write_bytes(data)
    return decode(path, **({"start": 0.0, "duration": 0.0} | part), sample_rate=RATE, max_duration=10.0)


def _loudest_frequency(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * RATE / len(waveform))


@pytest.mark.parametrize(("suffix", "container", "coder", "rate"), FORMATS)
def test_the_sound_is_the_one_that_was_written(
    av: Any, tmp_path: Path, suffix: str, container: str, coder: str, rate: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    data = _encode(av, container, coder, rate)
    waveform = _decode(path, data)
    assert -0.01 < len(waveform) / RATE - SECONDS < 0.1  # a coder's last frame is filled
    middle = waveform[4000:-4000]
    assert abs(_loudest_frequency(middle) - 440.0) < 2.0
    assert 0.3 < np.sqrt(2 * np.square(middle).mean()) < 0.55
    part = _decode(path, data, start=0.75, duration=0.5)
    assert len(part) == 8000
    np.testing.assert_allclose(part[200:-200], waveform[12200:19800], atol=2e-3)  # a resampler rings at the ends
    reader = ForwardReader(path)
    assert reader.num_samples / reader.rate == pytest.approx(len(waveform) / RATE, abs=1e-4)
    reader.close()


@pytest.mark.parametrize(
    ("suffix", "container", "coder", "rate"), [row for row in FORMATS if row[0] not in ("aac", "amr", "ts")]
)
def test_a_file_that_lost_its_end_is_never_a_shorter_sound(
    av: Any, tmp_path: Path, suffix: str, container: str, coder: str, rate: int
) -> None:
    data = _encode(av, container, coder, rate)
    for kept in (0.5, 0.9):
        with pytest.raises(BadClip) as caught:
            _decode(tmp_path / f"a.{suffix}", data[: int(kept * len(data))])
        assert caught.value.reason in ("truncated", "damaged", "unreadable")


def test_the_sound_of_a_video_is_read(av: Any, tmp_path: Path) -> None:
    for container in ("mp4", "matroska"):
        waveform = _decode(tmp_path / "a.video", _encode(av, container, "aac", 44100, video=True, channels=2))
        assert 0 <= len(waveform) / RATE - SECONDS < 0.1


def test_a_video_without_sound_is_named(av: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        pictures = output.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        output.mux(pictures.encode(av.VideoFrame.from_ndarray(np.full((72, 64), 128, np.uint8), format="yuv420p")))
        output.mux(pictures.encode(None))
    with pytest.raises(BadClip, match=r"unreadable: .*expected MP4, M4A, 3GP or QuickTime, found: no audio stream"):
        _decode(tmp_path / "a.mp4", file.getvalue())


def test_damage_never_ends_in_a_traceback(av: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for _, container, coder, rate in FORMATS:
        whole = _encode(av, container, coder, rate)
        for _ in range(5):
            data = bytearray(whole)
            for at in generator.integers(len(data), size=20).tolist():
                data[at] ^= 1 << int(generator.integers(8))
            try:
                assert len(_decode(tmp_path / "a.bin", bytes(data)))
            except BadClip as error:
                assert error.reason  # noqa: PT017


def test_texts_that_name_other_files_are_not_opened(tmp_path: Path) -> None:
    """FFmpeg follows playlists to files and addresses, were it asked what such a file is."""
    for text in (
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\nc=IN IP4 127.0.0.1\n",
    ):
        assert find_container(text) is None
        with pytest.raises(BadClip, match=r"unreadable: .*expected WAV, FLAC, OGG or MP3, found: Error opening"):
            _decode(tmp_path / "a.m4a", text)


def test_without_the_package_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    message = (
        r"a\.m4a: expected WAV, .*, found MP4, M4A, 3GP or QuickTime, .*`pip install 'av>=18'`.*sonolex\[formats\]"
    )
    with pytest.raises(BadClip, match=message):
        _decode(tmp_path / "a.m4a", b"\0\0\0\x18ftypM4A " + bytes(400))


def test_more_channels_than_eight_are_read(tmp_path: Path, av: Any) -> None:
    """PyAV finds planes behind the last of so many, in memory of others."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (RATE, 16)).astype(np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=RATE)
        stream.layout = "hexadecagonal"
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="hexadecagonal")
        frame.sample_rate = RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    waveform = _decode(tmp_path / "a.mka", file.getvalue())
    np.testing.assert_allclose(waveform, samples.mean(axis=1) / 32768, atol=1e-6)
