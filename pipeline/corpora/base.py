"""Interface of corpus adapters: common settings, the listing they return, and reading of tables.

Conventions: `source` is a path below the corpus root with forward slashes; `start` and `duration` are in seconds, and a
duration of 0 means to the end of the source. Adapters only list clips; `pipeline/corpora/manifest.py` checks the listings of
all corpora.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import parse_json
from pipeline.errors import CorpusError
from pipeline.params import Params, SharedFolder

_NAMED = 10  # offenders that a message names; the rest are counted


class AudioParams(Params):
    """Keys of the section `corpus` that reading audio needs, whatever the corpus's kind.

    Other keys are ignored here: the adapter's own class checks them, and a stage that decodes depends on no adapter.
    """

    model_config = ConfigDict(extra="ignore")

    root: SharedFolder  # folder of the corpus
    max_bad_fraction: Annotated[NonNegativeFloat, Field(le=1)]  # of clips missing or unreadable, largest allowed
    max_duration: PositiveFloat  # seconds; a longer clip counts as bad


class AdapterParams(AudioParams):
    """Base of adapters' params: keys common to all corpora; an adapter narrows `kind` and adds its own."""

    model_config = ConfigDict(extra="forbid")

    kind: str

    layout: ClassVar[str]  # expected content of `root`, for error messages
    makes_audio: ClassVar[bool] = False  # True: the adapter writes missing audio itself
    # Folds or roles of the clips, for checks before a run, where `list_clips` takes long or writes; None = list the clips.
    published_folds: ClassVar[tuple[str, ...] | None] = None

    def identity(self) -> str:
        """Return the corpus's identity: the settings that choose its clips, independent of where its files lie."""
        return json.dumps(self._choosing(), sort_keys=True, ensure_ascii=False, default=lambda path: path.name)

    def settings(self) -> dict[str, object]:
        """Return the settings without paths, by their key in params.yaml, as the manifest records them."""
        return {f"corpus.{key}": value for key, value in self._choosing().items() if not _holds_path(value)}

    def _choosing(self) -> dict[str, object]:
        return {key: value for key, value in self if key not in AudioParams.model_fields}


def _holds_path(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, dict) and any(map(_holds_path, value.values())))


def corpus_name(identity: str) -> str:
    """Return the short name of a corpus: its table's name (`esc10`), or its kind where it has no table (`demo`)."""
    try:
        settings = json.loads(identity)
    except json.JSONDecodeError:
        return identity
    return Path(settings["table"]).stem if "table" in settings else str(settings.get("kind", identity))


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip as its corpus lists it; for members of tar and Parquet files with the entries of the file's index."""

    clip_id: str
    source: str  # file below the root
    labels: tuple[str, ...]
    member: str = ""  # member of `source` when that is a tar file, name of the row when it is a Parquet file
    offset: int = 0  # of the member, in bytes; number of the row
    size: int = 0  # of the member, in bytes
    content: str = ""  # digest of the member; empty for a file of its own, which the manifest hashes
    start: float = 0.0  # seconds
    duration: float = 0.0  # seconds; 0 = to the end of the source
    group: str = ""  # recording, song or video that the clip was cut from; empty = its source
    fold: str = ""  # published fold or role; empty = none published
    unknown: tuple[str, ...] = ()  # classes of which nobody has said whether the clip has them
    weight: float = 0.0  # published sampling weight; 0 = none published


# The same as columns, for corpora too large for Python objects.
CLIP_COLUMNS = pa.schema(
    {
        "clip_id": pa.string(),
        "source": pa.string(),
        "labels": pa.list_(pa.string()),
        "member": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "content": pa.string(),
        "start": pa.float64(),
        "duration": pa.float64(),
        "group": pa.string(),
        "fold": pa.string(),
    }
)


# Columns that few corpora have; a listing without them has `unknown` empty and `weight` 0 for all clips.
_RARE_COLUMNS = pa.schema({"unknown": pa.list_(pa.string()), "weight": pa.float64()})
_ALL_COLUMNS = pa.schema([*CLIP_COLUMNS, *_RARE_COLUMNS])


@dataclass(frozen=True)
class CorpusListing:
    """Result of an adapter: all clips that the corpus lists, with and without audio."""

    classes: tuple[str, ...]  # in the order of the targets
    label_kind: LabelKind
    licence: str
    clips: list[ClipRow] | pa.Table  # rows, or the columns of CLIP_COLUMNS, `unknown` and `weight` if there are any
    missing: Literal["keep", "drop"] = "keep"  # clips without audio: in the manifest without content, or left out of it
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> files or rows that the adapter skipped
    sets: pa.ChunkedArray | None = None  # published set of each clip, for counts of missing clips; None = its fold
    class_ids: tuple[str, ...] | None = None  # published ids of the classes, such as /m/09x0r

    def table(self) -> pa.Table:
        """Return the clips as columns, all of them."""
        if not isinstance(self.clips, pa.Table):
            columns = {name: [getattr(clip, name) for clip in self.clips] for name in _ALL_COLUMNS.names}
            return pa.table(columns, schema=_ALL_COLUMNS)
        table = self.clips
        for name, nothing in (("unknown", []), ("weight", 0.0)):
            if name not in table.column_names:
                kind = _RARE_COLUMNS.field(name)
                table = table.append_column(kind, pa.repeat(pa.scalar(nothing, kind.type), len(table)))
        return table.select(_ALL_COLUMNS.names).cast(_ALL_COLUMNS)


class CorpusAdapter(Protocol):
    """Interface of adapter modules, which `pipeline/corpora/registry.py` names."""

    Params: type[AdapterParams]

    def list_clips(self, params: AdapterParams, /) -> CorpusListing:
        """List the clips of the corpus, given its section, which is one of `Params`.

        Reads the corpus's tables, and no audio. Raises CorpusError that names the file and the line, or all that is wrong.
        """


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table that has at least these columns; see `read_numbered_rows`."""
    rows = read_numbered_rows(path, columns)
    if not rows:
        raise CorpusError(f"{path}: expected at least one clip, found none")
    return [row for _, row in rows]


def read_numbered_rows(
    path: Path, columns: Sequence[str], what: str = "the corpus's table of clips"
) -> list[tuple[int, dict[str, str]]]:
    """Read separated values, a list of objects (`.json`) or JSON lines (`.jsonl`), each row with its line or number.

    Values are separated by tabs (`.tsv`), or by the first of comma, semicolon and tab that yields the columns. Every value
    is returned as text; lists stay JSON. Raises CorpusError that names the file, and the line or column.
    """
    text = read_text(path, what)
    reader = {".jsonl": _read_json_lines, ".json": _read_json}.get(path.suffix.lower())
    rows = reader(path, text) if reader else _read_separated(path, text, columns)
    for line, row in rows:
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise CorpusError(f"{path}, line {line}: expected a column `{missing[0]}`, found only: {', '.join(row)}")
    return rows


def read_text(path: Path, what: str) -> str:
    """Return a file's text, without a byte order mark. Raises CorpusError where it is missing, or not in UTF-8."""
    if not path.is_file():
        raise CorpusError(f"{path}: expected {what}, found no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected text in UTF-8, found {error}; save it as UTF-8") from None


def read_class_table(path: Path, key: str) -> dict[str, str]:
    """Return `key` -> `display_name` of a table of classes, in the order of its `index`. Raises CorpusError."""
    rows = read_rows(path, ("index", key, "display_name"))
    if sorted(row["index"] for row in rows) != sorted(map(str, range(len(rows)))):
        raise CorpusError(f"{path}: index: expected 0 to {len(rows) - 1}, each once, found other values")
    rows.sort(key=lambda row: int(row["index"]))
    reject(path, {f"values of {key} listed twice": _repeated([row[key] for row in rows])})
    return {row[key]: row["display_name"] for row in rows}


def numbered_classes(path: Path, rows: Sequence[Mapping[str, str]], *, number: str, name: str) -> tuple[str, ...]:
    """Return the classes of a table that names and numbers every clip's class, in the order of the numbers.

    Raises CorpusError for numbers that are none, and for those of several classes.
    """
    names: dict[str, set[str]] = {}
    for row in rows:
        names.setdefault(row[number], set()).add(row[name])
    problems = {
        f"values of {number} that are not numbers": [value for value in names if not value.isdecimal()],
        f"values of {number} with several classes": [
            f"{value} ({', '.join(sorted(found))})" for value, found in names.items() if len(found) > 1
        ],
    }
    reject(path, problems)
    return tuple(names[value].pop() for value in sorted(names, key=int))


def path_below(root: Path, text: str) -> str:
    """Return a path in its shortest form ("./a.wav" is "a.wav"), below the root where it is absolute and leads there."""
    path = PurePosixPath(text)
    if path.is_absolute():
        above = next((folder for folder in (root, root.resolve()) if path.is_relative_to(folder)), None)
        return str(path.relative_to(above) if above is not None else path)
    return str(path)


def as_seconds(text: str) -> float | None:
    """Return a number of seconds, 0 of an empty text; None where the text is no number."""
    try:
        return float(text.strip() or 0)
    except ValueError:
        return None


def is_unicode(text: str) -> bool:
    """Return whether a text can be stored; JSON may spell half of a surrogate pair, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def reject(where: object, problems: Mapping[str, Sequence[str]], remedy: str = "") -> None:
    """Raise one CorpusError with all broken rules (name -> offenders), and what to do; return if no rule has offenders."""
    lines = []
    for rule, offenders in problems.items():
        if offenders:
            more = f", and {len(offenders) - _NAMED} more" if len(offenders) > _NAMED else ""
            lines.append(f"{where}: {rule} ({len(offenders)}): {', '.join(offenders[:_NAMED])}{more}")
    if lines:
        raise CorpusError("\n".join([*lines, *filter(None, [remedy])]))


def _read_separated(path: Path, text: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator(path, text, columns), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        names = next(filter(None, reader), [])
        reject(path, {"columns listed twice (rename or delete one)": _repeated(names)})
        for values in reader:
            if not any(value.strip() for value in values):
                continue  # spreadsheets end tables with rows of separators
            if len(values) != len(names):
                expected = f"{len(names)} values, one per column"
                raise CorpusError(f"{path}, line {reader.line_num}: expected {expected}, found another number")
            rows.append((reader.line_num, dict(zip(names, values, strict=True))))
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: expected separated values, found {error}") from None
    return rows


def separator(path: Path, text: str, columns: Sequence[str]) -> str:
    """Return the separator of a table: of `.tsv` a tab, else the first of , ; and tab that yields the columns."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    head = text.lstrip().partition("\n")[0]
    for separator in ",;\t":
        names = next(csv.reader([head], delimiter=separator), [])
        if set(columns) <= set(names) and len(names) > 1:
            return separator
    return ","


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _read_json_lines(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    rows = []
    for line, entry in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 within a string
        if not entry.strip():
            continue
        try:
            row = parse_json(entry)
        except ValueError as error:
            raise CorpusError(f"{path}, line {line}: expected JSON, found {error}") from None
        rows.append((line, _texts_of(row, f"{path}, line {line}")))
    return rows


def _read_json(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise CorpusError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(entries, list):
        raise CorpusError(f"{path}: expected a list of objects, one per clip, found {type(entries).__name__}")
    return [(number, _texts_of(row, f"{path}, entry {number}")) for number, row in enumerate(entries, start=1)]


def _texts_of(row: object, where: str) -> dict[str, str]:
    """Return an object's values as text. Raises CorpusError where it is none, or where a text cannot be stored."""
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: expected a JSON object, found {type(row).__name__}")
    texts = {key: _as_text(value) for key, value in row.items()}
    if wrong := [key for key, text in texts.items() if not is_unicode(text)]:
        raise CorpusError(f"{where}: {wrong[0]}: expected Unicode, found half of a surrogate pair")
    return texts


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
