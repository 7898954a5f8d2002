"""Sound files for tests: written by libsndfile, then changed as programs, pipes and disks change them."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.spectrogram.mp3 import scan_frames

CASES = Path(__file__).parents[2] / "shared" / "cases"


def encode(samples: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    """Return a whole file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def with_data_size(wav: bytes, size: int, riff_size: int | None = None) -> bytes:
    """Return a WAV file with another length of its samples in the header."""
    at = wav.index(b"data") + 4
    data = bytearray(wav)
    data[at : at + 4] = size.to_bytes(4, "little")
    if riff_size is not None:
        data[4:8] = riff_size.to_bytes(4, "little")
    return bytes(data)


def without_total(flac: bytes) -> bytes:
    """Return a FLAC file as an encoder writes it to a pipe: without the number of samples."""
    data = bytearray(flac)
    data[21] &= 0xF0  # behind "fLaC", a header of 4 bytes, and 13 bytes of STREAMINFO
    data[22:26] = bytes(4)
    return bytes(data)


def without_count(mp3: bytes) -> bytes:
    """Return an MP3 file without the frame that states the number of the others."""
    scan = scan_frames(io.BytesIO(mp3).read)
    assert scan is not None
    assert scan.declared == scan.num_frames
    return mp3[scan.start :]


def case(name: str) -> Path:
    """Return the path of a file that was found to be read wrongly, or skip the test where it is absent."""
    path = CASES / name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path
