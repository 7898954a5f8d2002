"""Files of embeddings: Parquet and NPZ, which hold what made them, and the tables of the embedding projector.

    Parquet   columns file, start, end (seconds), label, embedding (list of dim float32), reason, message; a file that could
              not be used has the last two alone. `sonolex.embeddings` of the schema's metadata is the card, as JSON
    NPZ       arrays files, starts, ends, labels (row,), vectors (row, dim) float32, failures (failure, 3): file, reason and
              message; `card` is JSON

The projector (projector.tensorflow.org and others) reads vectors.tsv, without a header, and metadata.tsv, with one.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np

from pipeline.artifacts.files import parse_json, replacing
from pipeline.artifacts.tables import check_metadata, metadata_types
from pipeline.errors import ArtifactError, SonolexError
from pipeline.inference.prediction import Failure

FORMAT = 1  # raised when an older release could not read the files
SUFFIXES = (".parquet", ".npz")

_CARD = "sonolex.embeddings"
_COLUMNS = ("file", "start", "end", "label", "embedding", "reason", "message")
_ARRAYS = ("files", "starts", "ends", "labels", "vectors", "failures")


class EmbeddingsCard(TypedDict):
    """What embeddings are of, and what made them."""

    format: int
    model: str  # path of the bundle as it was named; empty for texture statistics
    digest: str  # of the model: `Embedder.digest`
    layer: str
    dim: int
    rows: Literal["files", "windows", "frames"]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of files, a row each, or a row for every window or time step."""

    card: EmbeddingsCard
    files: list[str]
    starts: np.ndarray  # (row,) seconds
    ends: np.ndarray  # (row,) seconds
    labels: list[str]
    vectors: np.ndarray  # (row, dim) float32
    failures: list[Failure]


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write Parquet or NPZ, as the name says, in one step."""
    with replacing(path) as partial:
        if require_suffix(path) == ".npz":
            _write_npz(partial, embeddings)
        else:
            _write_parquet(partial, embeddings)


def open_embeddings(path: Path) -> Embeddings:
    """Read a file of embeddings. Raises SonolexError for a file that is none, or whose rows are of different widths."""
    suffix = require_suffix(path)
    if not path.is_file():
        raise SonolexError(f"{path}: expected a file of embeddings, found none; `sonolex embed` writes one")
    embeddings = _read_npz(path) if suffix == ".npz" else _read_parquet(path)
    if embeddings.vectors.shape[1:] != (embeddings.card["dim"],):
        width = embeddings.vectors.shape[1]
        raise _damaged(path, f"embeddings of width {embeddings.card['dim']}, as its card says", f"width {width}")
    return embeddings


def write_projector(folder: Path, embeddings: Embeddings) -> None:
    """Write vectors.tsv and metadata.tsv for the embedding projector."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "vectors.tsv") as partial:
        np.savetxt(partial, embeddings.vectors, fmt="%.7g", delimiter="\t")
    rows = zip(embeddings.files, embeddings.labels, embeddings.starts, embeddings.ends, strict=True)
    lines = ["file\tlabel\tstart\tend", *("\t".join(map(_cell, row)) for row in rows)]
    with replacing(folder / "metadata.tsv") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def standardised(vectors: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """Return vectors (row, dim) float32 less the mean of `by` (row, dim), over its standard deviation where it varies."""
    mean, std = by.mean(axis=0, dtype=np.float64), by.std(axis=0, dtype=np.float64)
    return np.asarray((vectors - mean) / np.where(std > 1e-6, std, 1.0), dtype=np.float32)


def require_suffix(path: Path) -> str:
    """Return the ending of a file of embeddings. Raises SonolexError for any other."""
    if path.suffix.lower() not in SUFFIXES:
        raise SonolexError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    return path.suffix.lower()


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return " ".join(text.split())  # a tab or a line break would be another cell


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    failures, count = embeddings.failures, len(embeddings.files)
    none = [None] * len(failures)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(embeddings.vectors.astype(np.float32).ravel()), embeddings.card["dim"]
    )
    missing = pa.nulls(len(failures), vectors.type)
    columns = {
        "file": pa.array([_text(name) for name in (*embeddings.files, *(failure.source for failure in failures))]),
        "start": pa.array([*embeddings.starts.tolist(), *none], pa.float64()),
        "end": pa.array([*embeddings.ends.tolist(), *none], pa.float64()),
        "label": pa.array([*map(_text, embeddings.labels), *none], pa.string()),
        "embedding": pa.chunked_array([vectors, missing]),
        "reason": pa.array([*[None] * count, *(failure.reason for failure in failures)], pa.string()),
        "message": pa.array([*[None] * count, *(_text(failure.message) for failure in failures)], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({_CARD: json.dumps(embeddings.card)})
    pq.write_table(table, path)


def _read_parquet(path: Path) -> Embeddings:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "a Parquet table", error) from None
    card = _card(path, (table.schema.metadata or {}).get(_CARD.encode()))
    if absent := [name for name in _COLUMNS if name not in table.column_names]:
        raise _damaged(path, f"the column {absent[0]}", ", ".join(table.column_names))
    rows, failed = table.filter(pc.is_valid(table["embedding"])), table.filter(pc.is_null(table["embedding"]))
    failures = [Failure(row["file"], row["reason"], row["message"]) for row in failed.to_pylist()]
    widths = pc.unique(pc.list_value_length(rows["embedding"])).to_pylist()
    if len(widths) > 1:
        raise _damaged(path, "embeddings of one width", f"the widths {', '.join(map(str, sorted(widths)))}")
    values = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(
        card=card,
        files=rows["file"].to_pylist(),
        starts=rows["start"].to_numpy(),
        ends=rows["end"].to_numpy(),
        labels=rows["label"].to_pylist(),
        vectors=values.reshape(len(rows), *(widths or [card["dim"]])).astype(np.float32),
        failures=failures,
    )


def _write_npz(path: Path, embeddings: Embeddings) -> None:
    failures = [(failure.source, failure.reason, failure.message) for failure in embeddings.failures]
    with path.open("wb") as stream:  # a name without .npz would get it
        np.savez(
            stream,
            card=np.array(json.dumps(embeddings.card)),
            files=np.array(embeddings.files, dtype=np.str_),
            starts=embeddings.starts,
            ends=embeddings.ends,
            labels=np.array(embeddings.labels, dtype=np.str_),
            vectors=embeddings.vectors,
            failures=np.array(failures, dtype=np.str_).reshape(-1, 3),
        )


def _read_npz(path: Path) -> Embeddings:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise _damaged(path, "an NPZ archive", error) from None
    card = _card(path, str(arrays["card"]) if "card" in arrays else None)
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise _damaged(path, f"the array {missing[0]}", ", ".join(arrays))
    return Embeddings(
        card=card,
        files=arrays["files"].tolist(),
        starts=arrays["starts"],
        ends=arrays["ends"],
        labels=arrays["labels"].tolist(),
        vectors=arrays["vectors"],
        failures=[Failure(*row) for row in arrays["failures"].tolist()],
    )


def _card(path: Path, text: str | bytes | None) -> EmbeddingsCard:
    try:
        card = parse_json(text or "null")
    except ValueError as error:
        raise _damaged(path, "a card in JSON", error) from None
    if not isinstance(card, dict):
        raise _damaged(path, "a file that `sonolex embed` wrote", "one without its card")
    number = card.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise SonolexError(f"{path}: expected format {FORMAT} at most, found {number}; update Sonolex")
    try:
        check_metadata(
            metadata_types(EmbeddingsCard), card, lambda key, **found: ArtifactError(path, key, stage="embed", **found)
        )
    except ArtifactError as error:  # its advice is for the stages
        raise _damaged(path, f"{error.expected} as {error.field}", error.found) from None
    return cast(EmbeddingsCard, card)


def _damaged(path: Path, expected: str, found: object) -> SonolexError:
    return SonolexError(f"{path}: expected {expected}, found {found}; write it again with `sonolex embed`")


def _text(name: str) -> str:
    """Return text that UTF-8 can write: a file's name may hold any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
