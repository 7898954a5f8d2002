"""Token sequences of all clips, under one fold's vocabulary.

Conventions: `tokens` holds one list per codebook, all as long as the clip at `frame_rate` tokens per second, which is the
spectrogram's frame rate divided by the frames per token. Tokens are 0 up to `vocabulary_size` - 1; the special tokens after
them (see `pipeline/artifacts/vocabulary.py`) are never stored, since padding is a matter of batches and masks, not of clips.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema


class TokensMetadata(Metadata):
    """Metadata of a fold's token sequences."""

    fold: str
    vocabulary: str  # digest
    vocabulary_size: int  # tokens of each codebook
    num_codebooks: int
    frame_rate: float  # tokens a second in each codebook


TokenTable = Table[TokensMetadata]

TOKENS = TableSchema(
    name="tokens",
    version=1,
    stage="tokenize",
    columns={"clip_id": pa.string(), "tokens": pa.list_(pa.list_(pa.uint16()))},
    metadata=TokensMetadata,
)


@dataclass(frozen=True)
class TokenSequences:
    """Token sequences of clips by their ids."""

    metadata: TokensMetadata
    _rows: dict[str, int]  # clip_id -> position
    _ends: np.ndarray  # (clip + 1,), where each clip ends among the tokens, and 0 before
    _tokens: np.ndarray  # uint16, of all codebooks of a clip, one clip after the other

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._rows

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the tokens (codebook, token) uint16 of a clip, without a copy."""
        row = self._rows[clip_id]
        return self._tokens[self._ends[row] : self._ends[row + 1]].reshape(self.metadata["num_codebooks"], -1)

    def num_tokens(self, clip_id: str) -> int:
        """Return the number of tokens of a clip in each codebook."""
        row = self._rows[clip_id]
        return int(self._ends[row + 1] - self._ends[row]) // self.metadata["num_codebooks"]


def open_tokens(path: Path) -> TokenTable:
    """Open a fold's token sequences and check the number of codebooks, equal lengths, and the range of tokens."""
    tokens = TOKENS.open(path)
    _check_sequences(path, tokens.columns, tokens.metadata)
    return tokens


def load_sequences(path: Path, memory: int) -> TokenSequences:
    """Load a fold's token sequences with the checks of `open_tokens`: into memory, where they take up to `memory` bytes.

    More are written to a file without a name beside the artifact and mapped: the system reads the pages that are used, drops
    them when memory is short, and removes the file with the last process that uses it.
    """
    metadata, parts = TOKENS.open_parts(path)
    ids: list[str] = []
    counts = [np.zeros(1, np.int64)]  # tokens of each clip, all codebooks together

    def values() -> Iterator[np.ndarray]:
        for part in parts:
            lengths = _check_sequences(path, part, metadata)
            ids.extend(part["clip_id"].to_pylist())
            counts.append(lengths * metadata["num_codebooks"])
            yield _values(part)

    tokens = _stored(values(), _count_values(path), memory, path.parent)
    rows = {clip: row for row, clip in enumerate(ids)}
    return TokenSequences(metadata, rows, np.concatenate(counts).cumsum(), tokens)


def _stored(pieces: Iterator[np.ndarray], most: int, memory: int, folder: Path) -> np.ndarray:
    """Return pieces as one array: in memory, or mapped where `most` tokens, as many as may come, take more than `memory`."""
    kind = np.dtype(np.uint16)
    if most * kind.itemsize <= memory:
        stored, end = np.empty(most, kind), 0
        for piece in pieces:
            stored[end : end + len(piece)] = piece
            end += len(piece)
        return stored[:end]
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece in pieces:
            file.write(piece.data)
        file.flush()
        return np.asarray(np.memmap(file, kind, "r"))


def _count_values(path: Path) -> int:
    """Return how many tokens an artifact has at most; more than it has where clips are empty."""
    file = pq.read_metadata(path)
    columns = (file.row_group(i).column(j) for i in range(file.num_row_groups) for j in range(file.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("tokens."))


def _check_sequences(path: Path, rows: pa.Table, metadata: TokensMetadata) -> np.ndarray:
    """Return how many tokens each clip has in each codebook. Raises ArtifactError for rows that are no sequences."""
    clips = rows["tokens"].combine_chunks()
    num_codebooks, size = metadata["num_codebooks"], metadata["vocabulary_size"]
    counts = pc.list_value_length(clips).unique().to_pylist()
    if counts not in ([num_codebooks], []):
        raise TOKENS.error(path, "tokens", expected=f"{num_codebooks} lists per clip", found=sorted(counts))
    lengths = pc.list_value_length(clips.flatten()).to_numpy(zero_copy_only=False).reshape(-1, num_codebooks)
    if (lengths != lengths[:, :1]).any():
        clip = rows["clip_id"][int(np.flatnonzero((lengths != lengths[:, :1]).any(axis=1))[0])].as_py()
        raise TOKENS.error(path, f"tokens of {clip}", expected="codebooks of equal length", found="unequal lengths")
    values = clips.flatten().flatten()
    if len(values) and pc.max(values).as_py() >= size:
        raise TOKENS.error(path, "tokens", expected=f"tokens below {size}", found=pc.max(values).as_py())
    checked: np.ndarray = lengths[:, 0].astype(np.int64)
    return checked


def _values(rows: pa.Table) -> np.ndarray:
    """Return the tokens of all clips and codebooks, one after the other."""
    values: np.ndarray = rows["tokens"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    return values


def tokens_column(clips: Sequence[np.ndarray]) -> pa.ListArray:
    """Return the column of clips' tokens, each (codebook, token) uint16."""
    values = np.concatenate([tokens.ravel() for tokens in clips]) if clips else np.empty(0, np.uint16)
    lengths = [tokens.shape[1] for tokens in clips for _ in tokens]
    inner = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    outer = np.concatenate([[0], np.cumsum([len(tokens) for tokens in clips])]).astype(np.int32)
    return pa.ListArray.from_arrays(outer, pa.ListArray.from_arrays(inner, pa.array(values, pa.uint16())))


def token_arrays(tokens: TokenTable) -> dict[str, np.ndarray]:
    """Return clip_id -> tokens, shape (codebook, token), uint16; slices of one buffer."""
    clips = tokens["tokens"].combine_chunks()
    num_codebooks = tokens.metadata["num_codebooks"]
    inner = clips.flatten()
    ends = np.cumsum(pc.list_value_length(inner).to_numpy(zero_copy_only=False))
    values = inner.flatten().to_numpy(zero_copy_only=False)
    pieces = np.split(values, ends[num_codebooks - 1 : -1 : num_codebooks]) if len(ends) else []
    return {clip: piece.reshape(num_codebooks, -1) for clip, piece in zip(tokens.list("clip_id"), pieces, strict=True)}
