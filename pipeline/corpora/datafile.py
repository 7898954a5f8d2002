"""Datafile adapter: corpora as AST's and PSLA's programs read them (Gong, Chung and Glass, 2021).

data          a JSON file for each role: {"data": [{"wav": "/data/x.wav", "labels": "/m/07rwj00,/m/09x0r"}, ...]}
class_table   index, mid, display_name; labels are values of `mid`
weights       of the training file's clips, a number a line, for balanced sampling

A line that begins with `#` before the JSON, as in the authors' sample, is passed over.
"""

import math
import re
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, path_below, read_class_table, read_text, reject
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.errors import CorpusError
from pipeline.params import FilePath, PathBelow

_Role = Literal["train", "validation", "test"]

_NAMES: dict[_Role, re.Pattern[str]] = {
    "train": re.compile("train"), "validation": re.compile("(?<!e)val(?!u)|dev"), "test": re.compile("eval|test"),
}  # of files, by role  # fmt: skip
_DATA = {"train": "train.json", "test": "eval.json"}  # by default, as in recipes/defaults.yaml
_HEAD = 4096  # characters, in which the first entry begins


class Params(AdapterParams):
    kind: Literal["datafile"]
    data: dict[_Role, PathBelow | None]  # JSON files, below root or absolute; null = no such role
    class_table: FilePath
    weights: PathBelow | None  # CSV, below root or absolute; null = weights follow from the labels
    path_prefix: str  # beginning of every `wav` that stands for root, such as /data/sls/audioset/; empty = none
    label_kind: LabelKind
    licence: str

    layout: ClassVar[str] = "the audio files that the files of corpus.data name"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with a table of classes and JSON files of entries, roles being in their names."""
    tables = [path for path in contents.others if path.name.endswith("class_labels_indices.csv")]
    files = [path for path in contents.others if path.suffix == ".json" and holds_entries(contents.root / path)]
    data = {role: name for role, known in _NAMES.items() if (name := _named(files, known)) is not None}
    if not tables or not {"train", "test"} <= data.keys():
        return None
    settings: dict[str, Setting] = {"class_table": str(contents.root / tables[0])}
    settings |= {f"data.{role}": name for role, name in data.items() if _DATA.get(role) != name}
    if weights := _named([path for path in contents.others if path.suffix == ".csv"], re.compile("weight")):
        settings["weights"] = weights
    return Recognised("datafile", f"it has {', '.join(data.values())} and {tables[0]}", settings)


def _named(paths: list[PurePosixPath], pattern: re.Pattern[str]) -> str | None:
    """Return the first path whose name has a pattern in it, if any."""
    return next((str(path) for path in paths if pattern.search(path.stem.lower())), None)


def holds_entries(path: Path) -> bool:
    """Return whether the beginning of a file is that of a JSON file of entries."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return re.search(r'\{\s*"data"\s*:\s*\[', head) is not None and '"wav"' in head


def list_clips(params: Params) -> CorpusListing:
    """List the entries of all files; a clip's id is its role and its path."""
    names = read_class_table(params.class_table, "mid")
    clips: list[ClipRow] = []
    for role, path in params.data.items():
        if path is not None:
            entries = read_entries(params.root / path)
            weights = [0.0] * len(entries)
            if role == "train" and params.weights is not None:
                weights = _read_weights(params.root / params.weights, len(entries))
            clips += [_clip(params, role, *pair, names) for pair in zip(entries, weights, strict=True)]
    return CorpusListing(tuple(names.values()), params.label_kind, params.licence, clips, class_ids=tuple(names))


def _clip(params: Params, role: _Role, entry: dict[str, str], weight: float, names: dict[str, str]) -> ClipRow:
    source = path_below(params.root, entry["wav"].removeprefix(params.path_prefix))
    # A label that the class table lacks stays as it is: check_listing refuses unknown labels of all corpora.
    labels = tuple(names.get(label.strip(), label) for label in entry["labels"].split(",") if label.strip())
    name = PurePosixPath(source)
    return ClipRow(f"{role}/{name}", source, labels, fold=role, weight=weight)


def read_entries(path: Path) -> list[dict[str, str]]:
    """Return the entries of a JSON file, each with `wav` and `labels`. Raises CorpusError for any other file."""
    text = read_text(path, "a JSON file of clips")
    while text.startswith("#"):
        text = text.partition("\n")[2]
    try:
        document = parse_json(text)
    except ValueError as error:
        raise CorpusError(f"{path}: expected JSON, found {error}") from None
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise CorpusError(f'{path}: expected {{"data": [...]}}, found {type(document).__name__} without such a list')
    wrong = [str(number) for number, entry in enumerate(entries, start=1) if not _is_entry(entry)]
    reject(path, {"entries without texts `wav` and `labels`, by number": wrong})
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("wav", "labels"))


def _read_weights(path: Path, num_clips: int) -> list[float]:
    """Return the weights of the training clips. Raises CorpusError unless there is one above 0 for each."""
    lines = read_text(path, "sampling weights, a number a line").split()
    try:
        weights = [float(line) for line in lines]
    except ValueError as error:
        raise CorpusError(f"{path}: expected a number a line, found {error}") from None
    reject(path, {"weights that are not above 0": [str(x) for x in weights if not (x > 0 and math.isfinite(x))]})
    if len(weights) != num_clips:
        raise CorpusError(f"{path}: expected a weight for each of the {num_clips} training clips, found {len(weights)}")
    return weights
