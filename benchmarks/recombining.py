"""Corpora of any size, made of few recordings: clips are sums of excerpts, each with its own gain and place.

Long recordings are made of pieces of 10 s. A piece has one to six of AudioSet's 527 classes, drawn from a distribution with
a long tail: the commonest class is drawn a thousand times as often as the rarest. Each of a piece's first three labels is
heard in it, as an excerpt of one of the class's two recordings, so that models have something to learn; of further labels
nothing is heard. Clips are segments of the long recordings at equal distances, up to four for each piece; their labels are
those of the piece that a clip's middle lies in. Every class occurs in both sets.

With copies, files are linked under other names, whose clips have ids of their own: stages that work clip by clip then take
from the memo what they have computed once, and training reads as many clips as without copies.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.audio import synthesise
from pipeline.corpora.audioset_files import read_classes

RATE = 16000  # Hz
SEPARATOR = ";"  # of labels in a row
CLASS_TABLE = Path(__file__).parents[1] / "metadata" / "audioset" / "class_labels_indices.csv"
_PIECE = 10  # seconds
_PIECES_PER_FILE = 100
_CLIPS_PER_PIECE = (
    4  # at most: clips of 10 s then share three quarters of their sound with the next, those of 2.5 s nothing
)
_SUFFIXES = (".flac", ".ogg", ".wav")
_LAYERS = 3  # excerpts that are heard in a clip, at most
_RECORDINGS = 2  # of a class
_LABEL_COUNTS = (0.4, 0.3, 0.15, 0.08, 0.05, 0.02)  # probability of one to six labels
_TAIL = 1e-3  # frequency of the rarest class, of the commonest

Row = dict[str, str]


def read_recordings(folders: Sequence[Path]) -> list[np.ndarray]:
    """Return all recordings below these folders, mono float32 at `RATE`; without folders, synthesised ones."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not folders:
        return [synthesise(5.0, RATE, seed=seed, channels=1)[:, 0].astype(np.float32) for seed in range(40)]
    recordings = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, RATE, quality="MQ")
        if (loudest := float(np.abs(mono).max(initial=0.0))) > 0:
            recordings.append(mono / loudest)
    return recordings


def write_corpus(
    folder: Path,
    recordings: Sequence[np.ndarray],
    *,
    training: int,
    test: int,
    seconds: float = 10.0,
    copies: int = 1,
) -> list[Row]:
    """Write the audio of so many training and test clips, and return a row for each: path, start, duration, label, fold.

    Each training clip is one of `copies` clips of the same sound. Expects at least 527 different clips in both sets, one for
    each class, of at most 10 s.
    """
    names, _ = read_classes(CLASS_TABLE)
    rows: list[Row] = []
    for role, count in (("train", training // copies), ("test", test)):
        generator = np.random.default_rng([0, role == "test"])
        labels = list(_draw_labels(max(-(-count // _CLIPS_PER_PIECE), len(names)), len(names), generator))
        for first in range(0, len(labels), _PIECES_PER_FILE):
            group = labels[first : first + _PIECES_PER_FILE]
            path = f"{role}{first // _PIECES_PER_FILE:05d}.flac"
            pieces = [_mix(recordings, chosen, _PIECE * RATE, generator) for chosen in group]
            soundfile.write(folder / path, np.concatenate(pieces), RATE, subtype="PCM_16", compression_level=0.0)
            clips = count * (first + len(group)) // len(labels) - count * first // len(labels)
            for start in np.linspace(0, _PIECE * len(group) - seconds, clips):
                text = SEPARATOR.join(names[label] for label in group[int((start + seconds / 2) / _PIECE)])
                place = {"start": f"{start:.3f}", "duration": f"{seconds:g}"}
                rows.append({"path": path, **place, "label": text, "fold": role})
    return rows + [row for number in range(1, copies) for row in _linked(folder, rows, f"copy{number}-")]


def _linked(folder: Path, rows: Sequence[Row], prefix: str) -> list[Row]:
    """Link the files of training clips under other names, and return the rows of these."""
    training = [row for row in rows if row["fold"] == "train"]
    for path in {row["path"] for row in training}:
        (folder / f"{prefix}{path}").hardlink_to(folder / path)
    return [row | {"path": prefix + row["path"]} for row in training]


def _draw_labels(count: int, num_classes: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the labels of each piece; the first ones have one class each in turn, so that none is without a piece."""
    frequency = np.geomspace(1, _TAIL, num_classes)
    frequency /= frequency.sum()
    for number in range(count):
        drawn = int(generator.choice(len(_LABEL_COUNTS), p=_LABEL_COUNTS)) + 1
        labels = generator.choice(num_classes, drawn, replace=False, p=frequency)
        if number < num_classes:
            labels[0] = number
        yield np.unique(labels)


def _mix(
    recordings: Sequence[np.ndarray], labels: np.ndarray, length: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the piece (sample,) float32 of these labels, with its peak at a level of its own."""
    mixed = np.zeros(length, np.float32)
    for label in labels[:_LAYERS]:
        chosen = (int(label) * _RECORDINGS + int(generator.integers(_RECORDINGS))) % len(recordings)
        excerpt = np.roll(np.resize(recordings[chosen], length), int(generator.integers(length)))
        mixed += np.float32(10 ** (generator.uniform(-12, 0) / 20)) * excerpt
    mixed += np.float32(1e-4) * generator.standard_normal(length, dtype=np.float32)
    return mixed * np.float32(generator.uniform(0.3, 0.9) / np.abs(mixed).max())
