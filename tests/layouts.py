"""Corpora as they are published or as people have them, a few clips each, generated."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from conftest import make_waveform

INSTRUMENTS = ("accordion", "banjo", "cello")  # of the small OpenMIC
AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as Hugging Face's feature Audio stores it
ROLES = ("train", "train", "test")


def write_sound(path: Path, seed: int, kind: str = "noise") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, make_waveform(kind, 0.5, frequency=400.0 + 50 * seed, seed=seed), 16000)
    return path


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_speech_commands(root: Path) -> None:
    parts: dict[str, list[str]] = {"training": [], "validation": [], "testing": []}
    for label in ("left", "right"):
        for speaker, part in enumerate(("training", "training", "validation", "testing")):
            name = f"{label}/{speaker:08x}_nohash_0.wav"
            write_sound(root / name, speaker, "tone" if label == "left" else "noise")
            parts[part].append(name)
    for part in ("validation", "testing"):
        (root / f"{part}_list.txt").write_text("\n".join(parts[part]) + "\n")


def write_fsd50k(root: Path) -> None:
    (root / "FSD50K.ground_truth").mkdir(parents=True)
    for name, parts in (("dev", ("train", "train", "val")), ("eval", ("test",))):
        rows = [["fname", "labels", "mids", *(["split"] if name == "dev" else [])]]
        for number, (part, labels) in enumerate([(part, labels) for part in parts for labels in ("Bark,Dog", "Rain")]):
            write_sound(
                root / f"FSD50K.{name}_audio" / f"{number}.wav", number, "noise" if labels == "Rain" else "tone"
            )
            rows.append([str(number), labels, "", *([part] if name == "dev" else [])])
        with (root / "FSD50K.ground_truth" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write_table(root: Path) -> None:
    rows = [(f"{label}/{number}.wav", label) for label in ("tone", "noise") for number in range(6)]
    for number, (name, label) in enumerate(rows):
        write_sound(root / name, number, label)
    (root / "clips.csv").write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in rows))


def write_folder(root: Path) -> None:
    for label in ("tone", "noise"):
        for number in range(6):
            write_sound(root / label / "deeper" / f"{number}.wav", number, label)
    write_sound(root / "_background_noise_" / "rain.wav", 0)
    (root / "tone" / ".DS_Store").write_bytes(b"")
    (root / "tone" / "._0.wav").write_bytes(b"of macOS")
    (root / "README.md").write_text("mine")
    write_sound(root / "stray.wav", 9)


def write_beside(root: Path) -> None:
    for number in range(12):
        kind = ("tone", "noise")[number % 2]
        write_sound(root / f"{number}.wav", number, kind).with_suffix(".txt").write_bytes(f"{kind}\t\r\n\r\n".encode())
    write_sound(root / "alone.wav", 99)


def write_pattern(root: Path) -> None:
    for digit, kind in (("3", "tone"), ("7", "noise")):
        for speaker in range(6):
            write_sound(root / f"{digit}_speaker{speaker}_0.wav", speaker, kind)
    write_sound(root / "hum.wav", 9)


def write_urbansound8k(root: Path) -> None:
    rows: list[list[object]] = [["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]]
    for fold in range(1, 11):
        for number, (name, kind) in enumerate((("siren", "tone"), ("drilling", "noise"))):
            file = f"{100 * fold + number}-{number}-0-0.wav"
            write_sound(root / "audio" / f"fold{fold}" / file, fold, kind)
            rows.append([file, 100 * fold + number, 0.0, 0.5, 1, fold, 8 - number, name])
    write_csv(root / "metadata" / "UrbanSound8K.csv", rows)


def write_irmas(root: Path) -> None:
    """Write every code once in training and in the test files of two parts, with tabs, CRLF and an empty line."""
    codes = ("cel", "cla", "flu", "gac", "gel", "org", "pia", "sax", "tru", "vio", "voi")
    for number, code in enumerate(codes):
        for excerpt in (1, 2):
            name = f"{number:03d}__[{code}][nod][jaz_blu]{number:04d}__{excerpt}.wav"
            write_sound(root / "IRMAS-TrainingData" / code / name, 2 * number + excerpt, "tone")
        other = codes[(number + 1) % len(codes)]
        path = write_sound(
            root / f"IRMAS-TestingData-Part{1 + number % 2}" / "Part" / f"(0{number}) a song-{number}.wav", number
        )
        path.with_suffix(".txt").write_bytes(f"{code}\t\r\n{other}\t\r\n\r\n".encode())


def write_openmic(root: Path) -> None:
    """Write six clips, each judged for two of three instruments: it has the first, and not the second."""
    rows: list[list[object]] = [["sample_key", "instrument", "relevance", "num_responses"]]
    keys: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(9):
        key = f"{number:03d}_{1000 + number}"
        write_sound(root / "audio" / key[:3] / f"{key}.ogg", number, "tone" if number % 3 else "noise")
        rows.append([key, INSTRUMENTS[number % 3], 0.85, 3])
        rows.append([key, INSTRUMENTS[(number + 1) % 3], 0.1425, 3])
        keys[ROLES[number // 3]].append(key)
    write_csv(root / "openmic-2018-aggregated-labels.csv", rows)
    (root / "partitions").mkdir(parents=True)
    for role, own in keys.items():
        (root / "partitions" / f"split01_{role}.csv").write_text("\n".join(own) + "\n")


def write_datafile(root: Path) -> None:
    write_csv(
        root / "class_labels_indices.csv",
        [["index", "mid", "display_name"], [0, "/m/0a", "Tone"], [1, "/m/0b", "Noise"]],
    )
    for role, count in (("train", 6), ("eval", 4)):
        entries = []
        for number in range(count):
            write_sound(root / role / f"{number}.wav", number, "tone" if number % 2 else "noise")
            entries.append({"wav": f"{role}/{number}.wav", "labels": "/m/0a" if number % 2 else "/m/0b,/m/0a"})
        (root / f"{role}.json").write_text("# a sample\n" + json.dumps({"data": entries}, indent=1))
    (root / "train_weight.csv").write_text("".join(f"{weight}\n" for weight in (1, 1, 1, 1, 1, 5.5)))


def write_parquet(
    path: Path, sounds: Sequence[Path], features: Mapping[str, Mapping[str, object]], **columns: list[Any]
) -> None:
    """Write a file as `datasets` does: the audio as bytes and name, and the features in the schema's metadata."""
    audio = pa.array([{"bytes": sound.read_bytes(), "path": sound.name} for sound in sounds], AUDIO)
    table = pa.table({"audio": audio, **columns})
    info = {"info": {"features": {"audio": {"sampling_rate": 16000, "_type": "Audio"}, **features}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)


def write_huggingface(root: Path) -> None:
    features = {"label": {"names": ["tone", "noise"], "_type": "ClassLabel"}}
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 4), ("test-00000-of-00001", 8)):
        numbers = range(first, first + 4)
        sounds = [write_sound(root / f"{number}.wav", number, "noise" if number % 2 else "tone") for number in numbers]
        write_parquet(root / "data" / f"{name}.parquet", sounds, features, label=[number % 2 for number in numbers])
        for sound in sounds:
            sound.unlink()


def write_instruments(root: Path) -> None:
    """Write five recordings of each of three instruments: one for each fold that is drawn."""
    for number, name in enumerate(("cello", "flute", "hi_hat")):
        for take in range(5):
            write_sound(root / name / f"{take}.wav", 10 * number + take)


WRITERS: dict[str, Callable[[Path], None]] = {  # folder of `audio`, as recipes have it -> what writes it
    "speech_commands_v0.02": write_speech_commands,
    "FSD50K": write_fsd50k,
    "table": write_table,
    "folder": write_folder,
    "beside": write_beside,
    "pattern": write_pattern,
    "UrbanSound8K": write_urbansound8k,
    "IRMAS": write_irmas,
    "openmic-2018": write_openmic,
    "datafile": write_datafile,
    "huggingface": write_huggingface,
    "instruments": write_instruments,
}
