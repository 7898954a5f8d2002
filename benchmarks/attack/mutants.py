"""Mutants of sound files: damage of every kind to every container, and what decoding makes of it.

A mutant is right where it decodes to the original's samples, and named where the clip is bad, with a reason. Where it
decodes to other samples it is silent, unless nothing in such a file can tell (`Sound.cannot_tell`): then it is unknowable.
"""

import io
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from benchmarks.attack.outcomes import Outcome, Tally
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.sources import BadClip

RATE = 16000  # Hz, of the sounds and of what they are decoded to
SECONDS = 1.5
_HEAD = 96  # bytes at the beginning, which some damage is aimed at
_LONGEST = 2000  # bytes that are zeroed, deleted, inserted, doubled, or change their place at once
_GRACE = RATE // 1000  # samples that a file may lack, since some headers count a few too many
_LAST_FRAME = 144  # bytes of an MP3 frame of these sounds; some encoders count one frame more than there are

# Of each container and subtype, as libsndfile names them: the bytes that precede the samples, how many bytes behind their
# beginning the samples begin, and places in the header that no other field confirms (rates, codings, text).
_ALL_CHECKED = ("FLAC PCM_16", "OGG VORBIS", "OGG OPUS")
_SAMPLES_UNCHECKED: dict[str, tuple[bytes, int, tuple[slice, ...]]] = {
    "WAV PCM_16": (b"data", 8, (slice(20, 22),)),  # coding
    "WAV PCM_24": (b"data", 8, (slice(20, 22),)),  # coding
    "WAV FLOAT": (b"data", 8, (slice(20, 22),)),  # coding
    "WAV IMA_ADPCM": (b"data", 8, (slice(20, 22),)),  # coding
    "WAV MS_ADPCM": (b"data", 8, (slice(20, 22), slice(42, 70))),  # coding, coefficients
    "AIFF PCM_16": (b"SSND", 16, (slice(28, 38),)),  # rate
    "AU PCM_16": (b".snd", 24, (slice(4, 24),)),  # beginning, length, coding, rate, channels
    "CAF PCM_16": (b"data", 16, (slice(20, 36),)),  # rate, coding
    "W64 PCM_16": (b"data\xf3\xac\xd3\x11", 24, ()),
    "RF64 PCM_16": (b"data", 8, ()),
    "MP3 MPEG_LAYER_III": (b"", 0, ()),
}


class Sound(NamedTuple):
    """An encoded sound."""

    name: str
    content: bytes
    unchecked: np.ndarray  # (byte,) bool: whether nothing in the file confirms the byte
    spare: float  # bytes that may be missing without being missed

    def cannot_tell(self, content: bytes) -> bool:
        """Return whether a mutant could be whole: another sound, with more behind it, or with a little less at its end."""
        before, after = (np.frombuffer(data, np.uint8) for data in (self.content, content))
        common = min(len(before), len(after))
        (changed,) = np.nonzero(before[:common] != after[:common])
        first = changed[0] if len(changed) else common
        if self.name.startswith("MP3") and first < 4 and self.content.endswith(content[first:]):
            return True  # a stream that is received from its middle on
        return len(before) - len(after) <= self.spare and bool(self.unchecked[first:].all())

    def restored(self, content: bytes) -> bytes:
        """Return a mutant of the same length with the bytes restored that nothing confirms."""
        before, after = (np.frombuffer(data, np.uint8) for data in (self.content, content))
        return np.where(self.unchecked, before, after).tobytes()


class Mutant(NamedTuple):
    """A sound with damage."""

    damage: str
    at: int  # the first byte
    content: bytes


def make_sounds() -> list[Sound]:
    """Return one sound in every container, made of a chirp and noise."""
    times = np.arange(int(SECONDS * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(times))
    samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * times) * times) + 0.1 * noise
    return [_encode(name, samples) for name in (*_ALL_CHECKED, *_SAMPLES_UNCHECKED)]


def _encode(name: str, samples: np.ndarray) -> Sound:
    container, subtype = name.split()
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=container, subtype=subtype)
    content = file.getvalue()
    unchecked = np.zeros(len(content), dtype=bool)
    if name in _SAMPLES_UNCHECKED:
        mark, behind, fields = _SAMPLES_UNCHECKED[name]
        unchecked[content.index(mark) + behind :] = True
        for field in fields:
            unchecked[field] = True
    return Sound(name, content, unchecked, _LAST_FRAME if container == "MP3" else _GRACE * len(content) / len(samples))


def _flip(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at] ^= 1 << int(generator.integers(8))


def _scatter(data: bytearray, at: int, generator: np.random.Generator) -> None:
    for place in (at, *generator.integers(len(data), size=int(generator.integers(30))).tolist()):
        data[place] = int(generator.integers(256))


def _zero(data: bytearray, at: int, generator: np.random.Generator) -> None:
    end = min(len(data), at + _size(generator))
    data[at:end] = bytes(end - at)


def _delete(data: bytearray, at: int, generator: np.random.Generator) -> None:
    del data[at : at + _size(generator)]


def _insert(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = generator.bytes(_size(generator))


def _double(data: bytearray, at: int, generator: np.random.Generator) -> None:
    data[at:at] = data[at : at + _size(generator)]


def _swap(data: bytearray, at: int, generator: np.random.Generator) -> None:
    size = min(_size(generator), (len(data) - at) // 2)
    middle, end = at + size, at + 2 * size
    data[at:end] = data[middle:end] + data[at:middle]


def _cut(data: bytearray, at: int, _generator: np.random.Generator) -> None:
    del data[at:]


def _size(generator: np.random.Generator) -> int:
    return int(generator.integers(1, _LONGEST))


# Damage to bytes from a place on.
DAMAGES: dict[str, Callable[[bytearray, int, np.random.Generator], None]] = {
    "flip": _flip, "flip in the header": _flip, "scatter": _scatter, "zero": _zero, "delete": _delete,
    "insert": _insert, "double": _double, "swap": _swap, "cut": _cut,
}  # fmt: skip


def mutate(content: bytes, damage: str, generator: np.random.Generator) -> Mutant:
    """Return a sound with damage at a random place."""
    data, at = bytearray(content), int(generator.integers(_HEAD if "header" in damage else len(content)))
    DAMAGES[damage](data, at, generator)
    return Mutant(damage, at, bytes(data))


def attack(folder: Path, count: int, seed: int = 0) -> list[Tally]:
    """Decode `count` mutants, of all containers and kinds of damage in turn; return the outcomes of each container."""
    generator, sounds = np.random.default_rng(seed), make_sounds()
    tallies = [Tally(f"mutants: {sound.name}") for sound in sounds]
    damages = list(DAMAGES)
    for number in range(count):
        sound, tally = sounds[number % len(sounds)], tallies[number % len(sounds)]
        mutant = mutate(sound.content, damages[number // len(sounds) % len(damages)], generator)
        judge(sound, mutant, folder, tally)
    return tallies


def judge(sound: Sound, mutant: Mutant, folder: Path, tally: Tally) -> None:
    """Count what becomes of a mutant."""
    size = len(sound.content)
    what = f"{mutant.damage} at byte {mutant.at} of {size}, {len(mutant.content) - size:+d} bytes"
    try:
        tally.add(_outcome(sound, mutant.content, folder / "sound"), what)
    except BadClip as error:
        tally.add("named", str(error))
    except Exception:
        tally.add("traceback", f"{what}: {traceback.format_exc()}")


def _outcome(sound: Sound, content: bytes, path: Path) -> Outcome:
    expected, found = _decode(path, sound.content), _decode(path, content)
    if np.array_equal(found, expected):
        return "right"
    if len(content) != len(sound.content):
        return "unknowable" if sound.cannot_tell(content) else "silent"
    return "unknowable" if np.array_equal(_decode(path, sound.restored(content)), expected) else "silent"


def _decode(path: Path, content: bytes) -> np.ndarray:
    path.write_bytes(content)
    return decode(path, start=0.0, duration=0.0, sample_rate=RATE, max_duration=60.0)
