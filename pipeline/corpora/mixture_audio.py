"""Writing of mixtures as FLAC files, each once: its name is a digest of the sounds, gains and places in it.

Conventions: waveforms (sample,) float64, the mean of channels, resampled by soxr. Sounds of a mixture are brought to
one mean power, then each to its gain; the sum is scaled to a peak of 0.9. A sound alone keeps its level, up to that peak.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.files import file_digest, locked, replacing
from pipeline.corpora.mixture_drawing import Mixture, Source
from pipeline.errors import CorpusError

_PEAK = 0.9
_SMALLEST_POWER = 1e-12  # of a sound; a softer one is silence, and stays as it is


def write_sounds(folder: Path, mixtures: Sequence[Mixture], sample_rate: int, max_duration: float) -> list[str]:
    """Write the files that are missing, remove those of other settings or sources, and return the names in order.

    Raises CorpusError for a source that cannot be read.
    """
    settings = [file_digest(Path(__file__)), sample_rate, max_duration]
    names = [f"{_name(mixture, settings)}.flac" for mixture in mixtures]
    with locked(folder):
        for path in folder.glob("*.flac"):
            if path.name not in names and len(path.stem) == 32:  # never a file that was not written here
                path.unlink()
        for mixture, name in zip(mixtures, names, strict=True):
            if not (folder / name).exists():
                _write(folder / name, mix(mixture, sample_rate, max_duration), sample_rate)
    return names


def mix(mixture: Mixture, sample_rate: int, max_duration: float) -> np.ndarray:
    """Return the waveform (sample,) of a mixture, as long as its longest sound."""
    sounds = [_read(source, sample_rate, max_duration) for source in mixture.sources]
    if len(sounds) == 1:
        return sounds[0] * min(1.0, _PEAK / max(float(np.abs(sounds[0]).max()), 1e-9))
    total = np.zeros(max(map(len, sounds)))
    for sound, gain, place in zip(sounds, mixture.gains, mixture.places, strict=True):
        start, power = round(place * (len(total) - len(sound))), float(np.square(sound).mean())
        level = 10 ** (gain / 20) / np.sqrt(power) if power > _SMALLEST_POWER else 1.0
        total[start : start + len(sound)] += level * sound
    return np.asarray(total * _PEAK / max(float(np.abs(total).max()), 1e-9))


def _read(source: Source, sample_rate: int, max_duration: float) -> np.ndarray:
    import soundfile  # here, as soxr: most stages name a corpus and read no audio
    import soxr

    try:
        with soundfile.SoundFile(source.path) as file:
            file.seek(round(source.start * file.samplerate))
            frames = round(min(source.duration or max_duration, max_duration) * file.samplerate)
            samples, rate = file.read(frames, dtype="float64", always_2d=True).mean(axis=1), file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise CorpusError(f"{source.path}: expected a sound to mix, found {error}; mend it or take it out") from None
    if not len(samples) or not np.isfinite(samples).all():
        raise CorpusError(f"{source.path}: expected a sound to mix, found no finite samples; mend it or take it out")
    return np.asarray(soxr.resample(samples, rate, sample_rate, quality="HQ"))


def _write(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    import soundfile

    with replacing(path) as partial:
        soundfile.write(partial, waveform, sample_rate, format="FLAC", subtype="PCM_24")


def _name(mixture: Mixture, settings: Sequence[object]) -> str:
    sounds = [(source.digest, source.start, source.duration) for source in mixture.sources]
    made_of = json.dumps([*settings, mixture.clip_id, sounds, mixture.gains, mixture.places])
    return hashlib.sha256(made_of.encode()).hexdigest()[:32]


def source_digest(path: Path) -> str:
    """Return the digest of a source's file. Raises CorpusError where it cannot be read."""
    try:
        return file_digest(path)
    except OSError as error:
        raise CorpusError(
            f"{path}: expected a sound to mix, found {error.strerror}; put it back or take it out"
        ) from None
