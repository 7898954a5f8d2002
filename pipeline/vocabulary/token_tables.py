"""Tables of tokens that another program computed: one row a clip, as Parquet (`.parquet`) or JSON lines (`.jsonl`, `.json`).

Conventions: the column `clip_id` is that of the manifest (data/clips.parquet); `tokens` holds a list for each codebook, all
of one length, (codebook, token). With one codebook it may hold the tokens themselves. Rows are counted from 1, in JSON
lines as lines are. Other columns are ignored.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.files import replacing
from pipeline.errors import CorpusError
from pipeline.paths import input_path
from pipeline.vocabulary.external import Params

_TOKENS = pa.list_(pa.list_(pa.int64()))
_SPARE_TOKENS, _SPARE_SHARE = (
    2,
    0.02,
)  # more or fewer than the duration says: encoders pad, or leave out the last window
_NAMED = 3  # clips named in a message


@dataclass(frozen=True)
class ExternalTokens:
    """An opened table."""

    path: Path
    rows: Mapping[str, int]  # clip_id -> row, from 0
    clips: Sequence[np.ndarray]  # (codebook, token) uint16, by row


def read_token_table(params: Params) -> ExternalTokens:
    """Read and check the table of a vocabulary. Raises CorpusError that names the file and the first row that is wrong."""
    path = input_path(params.table)
    columns = _read_columns(path)
    ids = columns["clip_id"].to_pylist()
    rows: dict[str, int] = {}
    for row, clip in enumerate(ids):
        if clip in rows:
            raise _wrong(
                path, row, clip, "each clip once", f"it in row {rows[clip] + 1} too", "keep one of the two rows"
            )
        rows[clip] = row
    lists = _lists(path, columns["tokens"], params.codebooks)
    return ExternalTokens(path, rows, [_checked(path, row, ids[row], clip, params) for row, clip in enumerate(lists)])


def require_clips(tokens: ExternalTokens, seconds: Mapping[str, float], params: Params) -> None:
    """Raise CorpusError unless the table has all clips (clip_id -> duration), with as many tokens as they are long."""
    require_rows(tokens, list(seconds))
    for clip, duration in seconds.items():
        row = tokens.rows[clip]
        expected, found = duration * params.frame_rate, tokens.clips[row].shape[1]
        if abs(found - expected) > max(_SPARE_TOKENS, _SPARE_SHARE * expected):
            raise _wrong(
                tokens.path, row, clip,
                f"about {expected:.0f} tokens in each codebook ({duration:.2f} s at frame_rate {params.frame_rate:g})",
                str(found), "correct frame_rate, or write the tokens of the whole clip, without padding",
            )  # fmt: skip


def require_rows(tokens: ExternalTokens, clips: Sequence[str]) -> None:
    """Raise CorpusError unless the table has all clips."""
    if missing := [clip for clip in clips if clip not in tokens.rows]:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise CorpusError(
            f"{tokens.path}: clip_id: expected a row for each of {len(clips)} clips, found none for {len(missing)} "
            f"({named}); add them: data/clips.parquet has the id of each clip and its file"
        )


def read_vectors(params: Params) -> np.ndarray | None:
    """Return the vectors of tokens, (codebook, token, feature) float32; None without. Raises CorpusError."""
    if params.vectors is None:
        return None
    path, shape = input_path(params.vectors), f"({params.codebooks}, {params.num_tokens}, feature)"
    try:
        vectors = np.load(path, allow_pickle=False)
        if not isinstance(vectors, np.ndarray):
            vectors.close()
            raise ValueError("an archive of arrays, as numpy.savez writes it")
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CorpusError(
            f"{path}: expected an array of numbers as numpy.save writes it, found {error}; write it, or set vectors to null"
        ) from None
    if (
        not np.issubdtype(vectors.dtype, np.floating)
        or vectors.ndim != 3
        or vectors.shape[:2] != (params.codebooks, params.num_tokens)
    ):
        raise CorpusError(
            f"{path}: expected floating-point numbers {shape}, found {vectors.dtype} {vectors.shape}; write it so, or set "
            "codebooks and num_tokens to what it has"
        )
    if not vectors.shape[2] or not np.isfinite(vectors).all():
        raise CorpusError(f"{path}: expected finite vectors {shape}, found none, NaN or infinity; write them again")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def write_token_table(path: Path, clips: Mapping[str, np.ndarray]) -> None:
    """Write the tokens of clips, clip_id -> (codebook, token) integers, as a Parquet table that `read_token_table` reads."""
    columns = {
        "clip_id": pa.array(clips, pa.string()),
        "tokens": pa.array([c.tolist() for c in clips.values()], _TOKENS),
    }
    with replacing(path) as partial:
        pq.write_table(pa.table(columns), partial, compression="zstd")


def _read_columns(path: Path) -> pa.Table:
    """Return the table's two columns. Raises CorpusError where there are none such."""
    if not path.is_file():
        raise CorpusError(
            f"{path}: expected the table of tokens, found no file; write it (docs/vocabularies.md), or correct `table`"
        )
    try:
        table = _read_any(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path}: expected Parquet (.parquet) or JSON lines (.jsonl), found {str(error).splitlines()[0]}; write it again"
        ) from None
    for name in ("clip_id", "tokens"):
        if name not in table.column_names:
            found = ", ".join(table.column_names) or "none"
            raise CorpusError(f"{path}: expected the columns clip_id and tokens, found {found}; rename or add {name}")
    if not pa.types.is_string(table["clip_id"].type) and not pa.types.is_large_string(table["clip_id"].type):
        raise CorpusError(f"{path}: clip_id: expected text, found {table['clip_id'].type}; write the ids as text")
    for name in ("clip_id", "tokens"):
        if table[name].null_count:
            row = int(np.flatnonzero(pc.is_null(table[name]).to_numpy(zero_copy_only=False))[0])
            raise CorpusError(
                f"{path}: row {row + 1}: {name}: expected a value, found none; fill it in, or remove the row"
            )
    return table


def _read_any(path: Path) -> pa.Table:
    if path.suffix in (".jsonl", ".json"):
        import pyarrow.json

        return pyarrow.json.read_json(path)
    if path.suffix != ".parquet":
        raise pa.ArrowInvalid(f"the suffix {path.suffix or 'of no kind'}")
    return pq.read_table(path)


def _lists(path: Path, column: pa.ChunkedArray, codebooks: int) -> pa.ListArray:
    """Return the column as lists of lists of integers."""
    values, depth = column.combine_chunks(), 0
    kind = values.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if not pa.types.is_integer(kind) or depth not in ((1, 2) if codebooks == 1 else (2,)):
        raise CorpusError(
            f"{path}: tokens: expected lists of integers, one for each of {codebooks} codebooks, found {column.type}; write "
            "a clip's tokens as (codebook, token), see docs/vocabularies.md"
        )
    if depth == 1:
        flat = values.cast(pa.list_(pa.int64()))
        return pa.ListArray.from_arrays(np.arange(len(flat) + 1, dtype=np.int32), flat)
    return values.cast(_TOKENS)


def _checked(path: Path, row: int, clip: str, lists: pa.ListScalar, params: Params) -> np.ndarray:
    """Return the tokens of a row, (codebook, token) uint16. Raises CorpusError unless they are tokens of the vocabulary."""
    books = lists.values
    lengths = pc.list_value_length(books).to_pylist()
    if len(lengths) != params.codebooks:
        advice = "write tokens as (codebook, token), or correct codebooks"
        raise _wrong(path, row, clip, f"{params.codebooks} lists of tokens", str(len(lengths)), advice)
    if len(set(lengths)) > 1 or not lengths[0]:
        found = f"lengths {', '.join(map(str, lengths))}"
        raise _wrong(path, row, clip, "lists of one length, above 0", found, "write a token of each codebook a frame")
    values = books.flatten()
    if values.null_count:
        raise _wrong(path, row, clip, "integers", "null", "write a token of each codebook a frame")
    tokens: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(params.codebooks, -1)
    if tokens.min() < 0 or tokens.max() >= params.num_tokens:
        book, place = np.argwhere((tokens < 0) | (tokens >= params.num_tokens))[0].tolist()
        found = f"{tokens[book, place]} in codebook {book + 1}, position {place + 1}"
        advice = "correct num_tokens, or write ids from 0 without special tokens"
        raise _wrong(path, row, clip, f"tokens from 0 to {params.num_tokens - 1}", found, advice)
    return tokens.astype(np.uint16)


def _wrong(path: Path, row: int, clip: str, expected: str, found: str, advice: str) -> CorpusError:
    return CorpusError(f"{path}: row {row + 1} (clip_id {clip}): expected {expected}, found {found}; {advice}")
