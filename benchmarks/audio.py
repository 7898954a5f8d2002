"""Synthetic FLAC recordings for benchmarks, as costly to decode as music and field recordings.

A few are synthesised (tones that come and go over coloured noise, two channels); the others are copies with a different
metadata block, so that every file has its own content without the cost of encoding.
"""

from pathlib import Path

import numpy as np
import soundfile

_DISTINCT = 40  # synthesised files
_STREAMINFO = 4 + 4 + 34  # bytes: "fLaC", a block header, the first block (RFC 9639)
_LAST, _APPLICATION = 0x80, 2  # flag and type of a metadata block


def write_flacs(folder: Path, count: int, *, seconds: float = 10.0, sample_rate: int = 44100) -> list[Path]:
    """Write `count` stereo FLACs of 16 bits into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded: list[bytes] = []
    paths = [folder / f"clip{number:05d}.flac" for number in range(count)]
    for number, path in enumerate(paths):
        if number < _DISTINCT:
            soundfile.write(path, synthesise(seconds, sample_rate, seed=number), sample_rate, subtype="PCM_16")
            encoded.append(path.read_bytes())
        else:
            path.write_bytes(_marked(encoded[number % len(encoded)], number))
    return paths


def synthesise(seconds: float, sample_rate: int, *, seed: int, channels: int = 2) -> np.ndarray:
    """Return (sample, channel) float64: five tones with envelopes over noise that falls by 3 dB an octave from 200 Hz."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    spectrum = np.fft.rfft(rng.standard_normal((len(times), channels)), axis=0)
    spectrum /= np.sqrt(np.maximum(1, np.fft.rfftfreq(len(times), 1 / sample_rate) / 200))[:, None]
    noise = np.fft.irfft(spectrum, len(times), axis=0)
    sound = 0.02 * noise / noise.std()
    for _ in range(5):
        envelope = np.exp(-(((times - rng.uniform(0, seconds)) / rng.uniform(0.05, 0.4) / seconds) ** 2))
        tone = envelope * np.sin(2 * np.pi * rng.uniform(80, 6000) * times + rng.uniform(0, 6))
        sound += tone[:, None] * rng.uniform(0.02, 0.1, channels)
    return np.asarray(np.clip(sound, -1, 1))


def _marked(encoded: bytes, number: int) -> bytes:
    """Return a FLAC with one more metadata block, which decoders ignore, holding `number`."""
    block = bytes([_APPLICATION]) + (12).to_bytes(3, "big") + b"copy" + number.to_bytes(8, "big")
    if encoded[4] & _LAST:
        raise ValueError("expected a FLAC with a comment block behind its stream information, as libsndfile writes it")
    return encoded[:_STREAMINFO] + block + encoded[_STREAMINFO:]
