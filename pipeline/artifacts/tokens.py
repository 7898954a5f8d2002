"""Token sequences of all clips, under one fold's vocabulary.

Conventions: `tokens` holds one list per codebook, all as long as the clip at `frame_rate` tokens per second, which is the
spectrogram's frame rate divided by the frames per token. Tokens are 0 up to `vocabulary_size` - 1; the special tokens after
them (see `pipeline/artifacts/vocabulary.py`) are never stored, since padding is a matter of batches and masks, not of clips.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def open_tokens(path: Path) -> TokenTable:
    """Open a fold's token sequences and check the number of codebooks, equal lengths, and the range of tokens."""
    tokens = TOKENS.open(path)
    clips = tokens["tokens"].combine_chunks()
    num_codebooks, size = tokens.metadata["num_codebooks"], tokens.metadata["vocabulary_size"]
    counts = pc.list_value_length(clips).unique().to_pylist()
    if counts not in ([num_codebooks], []):
        raise TOKENS.error(path, "tokens", expected=f"{num_codebooks} lists per clip", found=sorted(counts))
    lengths = pc.list_value_length(clips.flatten()).to_numpy(zero_copy_only=False).reshape(-1, num_codebooks)
    if (lengths != lengths[:, :1]).any():
        clip = tokens.list("clip_id")[int(np.flatnonzero((lengths != lengths[:, :1]).any(axis=1))[0])]
        raise TOKENS.error(path, f"tokens of {clip}", expected="codebooks of equal length", found="unequal lengths")
    values = clips.flatten().flatten()
    if len(values) and pc.max(values).as_py() >= size:
        raise TOKENS.error(path, "tokens", expected=f"tokens below {size}", found=pc.max(values).as_py())
    return tokens


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
