"""Files that a user names: paths, folders, globs, tables with a column of paths, and a list on standard input."""

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pipeline.corpora.base import read_rows
from pipeline.corpora.walking import AUDIO_SUFFIXES
from pipeline.errors import SonolexError
from pipeline.inference.prediction import Failure

STDIN = "-"
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "source")  # the first that a table has names the files

_GLOB = "*?["


@dataclass(frozen=True)
class FoundFiles:
    """Files in the order in which they were named, each once."""

    paths: list[Path]
    repeated: dict[Path, int]  # files that were named more than once -> how often
    failures: list[Failure]  # folders that could not be listed


def find_files(names: Sequence[str], *, stdin: TextIO, root: Path | None = None) -> FoundFiles:
    """Return the files that `names` stand for; those of a folder or a pattern in order of their paths.

    Paths in a table are below `root`, by default the table's folder. A single file that does not exist is kept: it fails
    when it is read. Raises SonolexError for a folder, a pattern or a table without a file.
    """
    failures: list[Failure] = []
    named = [path for name in names for path in _expand(name, stdin, root, failures)]
    if not named and not failures:
        raise SonolexError("expected at least one file, found an empty list on standard input")
    counts = Counter(map(place_of, named))
    first: dict[Path, Path] = {}
    for path in named:
        first.setdefault(place_of(path), path)
    repeated = {first[place]: count for place, count in counts.items() if count > 1}
    return FoundFiles(list(first.values()), repeated, failures)


def place_of(path: str | Path) -> Path:
    """Return the absolute path of a file, by which files are compared; symbolic links are left as they are named."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` follows links


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV, TSV, JSON-lines or Parquet table as text. Raises SonolexError unless it has a row."""
    if not path.is_file():
        raise SonolexError(f"{path}: expected a table, found no such file")
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else read_rows(path, ())


def choose_column(path: Path, row: dict[str, str], known: Sequence[str]) -> str:
    """Return the first of the `known` columns that a row has. Raises SonolexError where it has none."""
    for name in known:
        if name in row:
            return name
    raise SonolexError(f"{path}: expected a column {' or '.join(known)}, found {', '.join(row)}; rename one")


def table_paths(path: Path, root: Path | None) -> list[Path]:
    """Return the files that a table names."""
    rows = read_table(path)
    column = choose_column(path, rows[0], PATH_COLUMNS)
    return [(root or path.parent) / Path(row[column]).expanduser() for row in rows]


def _expand(name: str, stdin: TextIO, root: Path | None, failures: list[Failure]) -> list[Path]:
    path = Path(name).expanduser()
    if name == STDIN:
        return [Path(line.strip()) for line in stdin if line.strip()]
    if path.is_dir():
        return _files_below(path, failures)
    if path.suffix.lower() in TABLES:
        return table_paths(path, root)
    if any(character in name for character in _GLOB) and not path.exists():
        return _matches(name, path, failures)
    return [path]


def _matches(pattern: str, path: Path, failures: list[Failure]) -> list[Path]:
    """Return what matches a pattern, where `**` is any number of folders; a folder stands for the files in it."""
    found: list[Path] = []
    for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - a pattern may be absolute
        if not Path(match).is_dir():
            found.append(Path(match))
        elif "**" not in pattern:
            found += _files_below(Path(match), failures)
    if not found:
        raise SonolexError(
            f"{pattern}: expected a file that matches, found none; a folder by itself stands for all in it"
        )
    return found


def _files_below(folder: Path, failures: list[Failure]) -> list[Path]:
    """Return the audio files in a folder and the folders in it; a folder that cannot be listed is a failure."""
    before, found, others = len(failures), [], 0

    def note(error: OSError) -> None:
        message = f"{error.filename}: expected a folder to list, found: {error.strerror}; try `chmod u+rx`"
        failures.append(Failure(str(error.filename), "unreadable", message))

    for place, folders, files in os.walk(folder, onerror=note):
        folders.sort()
        audio = sorted(file for file in files if file.lower().endswith(AUDIO_SUFFIXES))
        found += [Path(place, file) for file in audio]
        others += len(files) - len(audio)
    if not found and len(failures) == before:
        content = f"{others} with other endings" if others else "an empty folder"
        raise SonolexError(
            f"{folder}: expected files that end in {', '.join(AUDIO_SUFFIXES)}, found {content}; a file of "
            "another ending can be named by itself"
        )
    return sorted(found)


def _read_parquet(path: Path) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SonolexError(f"{path}: expected a Parquet table, found: {error}") from None
    if not rows:
        raise SonolexError(f"{path}: expected at least one row, found none")
    return [{name: _text(value) for name, value in row.items()} for row in rows]


def _text(value: object) -> str:
    """Return a value as tables of text have it: a list as JSON."""
    if isinstance(value, list):
        return json.dumps(value)
    return "" if value is None else str(value)
