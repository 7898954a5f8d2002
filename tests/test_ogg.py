"""Damage in the middle of Ogg files, which libsndfile passes over: named, and never taken for a shorter sound."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_waveform

from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.ogg import OggFault, scan_pages
from pipeline.spectrogram.sources import BadClip

Damage = Callable[[bytearray, int, np.random.Generator], None]


def _flip(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data[at] ^= 1 << int(rng.integers(8))


def _zero(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data[at : at + 300] = bytes(300)


def _delete(data: bytearray, at: int, rng: np.random.Generator) -> None:
    del data[at : at + 300]


def _insert(data: bytearray, at: int, rng: np.random.Generator) -> None:
    data[at:at] = rng.bytes(300)


def _lose_a_page(data: bytearray, at: int, rng: np.random.Generator) -> None:
    first = data.index(b"OggS", at)
    del data[first : data.index(b"OggS", first + 4)]


def _encoded(subtype: str = "VORBIS") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_waveform("noise", 4.0, 48000), 48000, format="OGG", subtype=subtype)
    return file.getvalue()


def _fault(data: bytes) -> OggFault | None:
    return scan_pages(io.BytesIO(data).read).fault


def _decode(path: Path, **part: float) -> np.ndarray:
    settings = {"start": 0.0, "duration": 0.0} | part
    return decode(path, **settings, sample_rate=16000, max_duration=60.0)


@pytest.mark.parametrize("part", [{}, {"start": 0.5, "duration": 0.5}])
@pytest.mark.parametrize("damage", [_flip, _zero, _delete, _insert, _lose_a_page])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: Damage, part: dict[str, float]) -> None:
    whole, rng = _encoded(), np.random.default_rng(0)
    for at in rng.integers(len(whole) // 4, 3 * len(whole) // 4, 5).tolist():
        data = bytearray(whole)
        damage(data, at, rng)
        (tmp_path / "a.ogg").write_bytes(data)
        with pytest.raises(
            BadClip, match=r"a\.ogg: expected pages that follow each other.*\(RFC 3533\), found"
        ) as caught:
            _decode(tmp_path / "a.ogg", **part)
        assert caught.value.reason == "damaged"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_whole_files_have_no_fault(subtype: str) -> None:
    whole = _encoded(subtype)
    assert _fault(whole) is None
    assert _fault(whole + whole) is None  # one stream after another
    assert _fault(whole + b"TAG" + bytes(125)) is None  # no page, after the end: no part of the file
    assert _fault(whole[:-1]) == OggFault(cut=True, found=f"the end in the page at byte {whole.rindex(b'OggS')}")
    assert _fault(whole[: whole.rindex(b"OggS")]) == OggFault(cut=True, found="a stream without end")


def test_every_clip_of_esc10_is_whole(esc10_root: Path) -> None:
    for path in sorted((esc10_root / "audio").glob("*.ogg")):
        with path.open("rb") as file:
            assert scan_pages(file.read).fault is None, path
