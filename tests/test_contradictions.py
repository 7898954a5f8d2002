"""Damage to headers, which decoders pass over: named, and never taken for another sound."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.attack.mutants import RATE, SECONDS, make_sounds
from pipeline.spectrogram.contradictions import find_contradiction
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.sources import BadClip

SOUNDS = {sound.name: sound.content for sound in make_sounds()}


def _decode(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return decode(path, start=0.0, duration=0.0, sample_rate=RATE, max_duration=60.0)


def _flipped(name: str, at: int, bit: int) -> bytes:
    content = bytearray(SOUNDS[name])
    content[at] ^= 1 << bit
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "at", "bit", "found"),
    [
        ("WAV PCM_16", 22, 3, "9 channels of 16 bits in 2 bytes"),
        ("WAV PCM_16", 25, 0, "a rate of 16256 Hz, and 32000 bytes per second, which are 16000 Hz"),
        ("WAV PCM_24", 34, 3, "1 channels of 16 bits in 3 bytes"),
        ("WAV PCM_16", 41, 0, "the end of the samples at byte 47788, where no chunk begins"),
        ("WAV IMA_ADPCM", 33, 0, "1017 samples of 1 channels of 4 bits in blocks of 768 bytes"),
        ("WAV IMA_ADPCM", 25, 0, "a rate of 16256 Hz, and 8055 bytes per second, which are 16000 Hz"),
        ("WAV MS_ADPCM", 33, 0, "1012 samples of 1 channels of 4 bits in blocks of 768 bytes"),
        ("RF64 PCM_16", 29, 0, "the end of the samples at byte 47848, where no chunk begins"),
        ("W64 PCM_16", 69, 0, "a rate of 16256 Hz"),
        ("AIFF PCM_16", 24, 0, "23744 samples of 1 channels of 16 bits in 48000 bytes"),
        ("CAF PCM_16", 47, 5, "33 channels of 16 bits in 2 bytes"),
        ("FLAC PCM_16", 20, 4, "a rate of 16001 Hz, and of 16000 Hz in a frame"),
        ("FLAC PCM_16", 24, 6, "7616 samples, and frames with 24000"),
    ],
)
def test_fields_that_contradict_each_other_are_damage(tmp_path: Path, name: str, at: int, bit: int, found: str) -> None:
    assert len(_decode(tmp_path / "whole", SOUNDS[name])) >= SECONDS * RATE
    with pytest.raises(BadClip, match=f"expected a header that agrees with itself, found {found}") as caught:
        _decode(tmp_path / "damaged", _flipped(name, at, bit))
    assert caught.value.reason == "damaged"


def test_bytes_behind_a_sound_and_odd_numbers_of_programs_are_no_contradiction() -> None:
    wav = bytearray(SOUNDS["WAV PCM_16"])
    wav[28:32] = (8000).to_bytes(4, "little")  # a rate of bytes for 4 kHz, as no program means it
    for content in (bytes(wav), bytes(wav) + b"more", SOUNDS["FLAC PCM_16"] + b"TAG" + bytes(125)):
        assert not find_contradiction(lambda at, size, content=content: content[at : at + size], len(content))


@pytest.mark.parametrize("name", ["OGG OPUS", "OGG VORBIS"])
def test_a_damaged_page_is_named_whichever_decoder_opens_the_file(tmp_path: Path, name: str) -> None:
    """libsndfile refuses such an Opus file, and FFmpeg would pass over the page."""
    with pytest.raises(BadClip, match="expected pages that follow each other"):
        _decode(tmp_path / "a.opus", _flipped(name, len(SOUNDS[name]) // 2, 0))


def test_a_first_mp3_frame_that_is_not_whole_is_damage(tmp_path: Path) -> None:
    """It says how many frames there are, and how much of them is an encoder's delay."""
    mp3 = SOUNDS["MP3 MPEG_LAYER_III"]
    for content in (mp3[:64] + mp3[100:], mp3[:100] + b"more" + mp3[100:], _flipped("MP3 MPEG_LAYER_III", 1, 3)):
        with pytest.raises(BadClip, match="found a frame at byte 0 that no other follows"):
            _decode(tmp_path / "a.mp3", content)
    with pytest.raises(BadClip, match="found other bytes than 0 before Xing"):
        _decode(tmp_path / "a.mp3", _flipped("MP3 MPEG_LAYER_III", 11, 3))


def test_coders_and_places_that_do_not_exist_are_named(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV, the extra `formats`")
    with pytest.raises(BadClip, match="found: sound of an unknown coder"):
        _decode(tmp_path / "a.wav", _flipped("WAV IMA_ADPCM", 21, 5))
    w64 = bytearray(SOUNDS["W64 PCM_16"])
    w64[56:64] = b"\xff" * 7 + b"\x7f"  # length of the chunk before the samples
    with pytest.raises(BadClip):
        _decode(tmp_path / "a.w64", bytes(w64))
