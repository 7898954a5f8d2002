"""Token sequences of clips, shard by shard: those of known shards and clips are taken from the memo.

`compute_sequences` is a pure function of its spec, small and picklable both ways; the worker writes the shard's token
sequences into the memo store. A shard is one of the spectrogram's. Token sequences of an entry that is damaged or gone are
computed again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.tables import Table
from pipeline.artifacts.tokens import TOKENS, TokensMetadata, tokens_column
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.execution.code import code_version
from pipeline.execution.memo import Entry, LostEntry, Memo
from pipeline.spectrogram.reader import FrameReader
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.external_artifact import recorded_params
from pipeline.vocabulary.token_tables import ExternalTokens, read_token_table, require_clips

_FRAMES_PER_BATCH = 1 << 17  # 64 MiB of float32 at 128 mel bands, and as much again normalised

_ROWS_PER_GROUP = 4096  # clips, of a selection: some 8 MB of tokens of ten-second clips

# Frames of clips to tokens; a function that has a name, so that workers and the digest of its code find it.
Encode = Callable[[Vocabulary, Sequence[np.ndarray]], list[np.ndarray]]

_ROWS = "tokens.parquet"  # of a memo entry
_ROWS_SCHEMA = TOKENS.arrow.append(pa.field("key", pa.string(), nullable=False))


@dataclass(frozen=True)
class SequencesSpec:
    """Everything that one shard's token sequences follow from, and where they go."""

    name: str  # of the spectrogram's shard
    spectrogram: Spectrogram  # its index cut down to the clips of this shard
    vocabulary_path: Path
    known: dict[str, str]  # clip key -> name of another entry of the memo that has its token sequence
    memo: Memo
    encode: Encode


@dataclass(frozen=True)
class SequencesReport:
    """Result of a shard: clips encoded and copied."""

    name: str
    computed: int  # clips
    reused: int  # clips that were copied from another entry


def open_memo(root: Path, vocabulary: Vocabulary, spectrogram: Spectrogram, encode: Encode) -> Memo:
    """Open the memo's version for this vocabulary, these frames, and the code of `encode` as it is now."""
    params = {"vocabulary": vocabulary.digest(), "frames": spectrogram.index.metadata["version"]}
    return Memo(root, "tokenize", params=params, code=code_version(encode, tokens_column, kinds=vocabulary.kinds))


def plan_sequences(spectrogram: Spectrogram) -> dict[str, Spectrogram]:
    """Return shard -> the spectrogram cut down to it, in the order of the index; shards without frames do not occur."""
    index = spectrogram.index
    usable = index.columns.filter(pc.equal(index["status"], "ok"))
    plans, start = {}, 0
    for name, group in groupby(usable["shard"].to_pylist()):
        stop = start + sum(1 for _ in group)
        rows = usable.slice(start, stop - start)
        plans[str(name)] = Spectrogram(spectrogram.path, Table(index.path, rows, index.metadata), spectrogram.metadata)
        start = stop
    return plans


def find_known(
    memo: Memo, plans: dict[str, Spectrogram], *, thorough: bool = False
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the finished shards, and for clips of the others, which entry holds their token sequence.

    `thorough` compares the finished shards with their digests.
    """
    entries = memo.find_all(plans, thorough=thorough)
    todo = [plan for name, plan in plans.items() if name not in entries]
    donors = sorted(memo.names() - set(entries)) if todo else []
    known: dict[str, str] = {}
    if donors:
        wanted = set(pa.concat_tables([plan.index.columns.select(["key"]) for plan in todo])["key"].to_pylist())
        for name in donors:
            keys = _donated_rows(memo, name, ["key"])["key"].to_pylist()
            known |= {key: name for key in keys if key in wanted}
    return entries, known


def sequences_specs(
    plans: dict[str, Spectrogram],
    entries: dict[str, Entry],
    known: dict[str, str],
    vocabulary_path: Path,
    memo: Memo,
    encode: Encode,
) -> Iterator[SequencesSpec]:
    """Yield the specs of the shards that are not finished, each only when it is asked for."""
    for name, plan in plans.items():
        if name not in entries:
            keys = plan.index.list("key")
            # `take` copies: a slice would be sent to the worker with the whole index behind it.
            rows = plan.index.columns.take(list(range(len(keys))))
            part = Spectrogram(plan.path, Table(plan.index.path, rows, plan.index.metadata), plan.metadata)
            own = {key: known[key] for key in keys if key in known}
            yield SequencesSpec(name, part, vocabulary_path, own, memo, encode)


def compute_sequences(spec: SequencesSpec) -> SequencesReport:
    """Write the token sequences of the shard's clips into the memo. Holds one batch of frames, and the shard's tokens."""
    vocabulary, reader = open_vocabulary(spec.vocabulary_path), FrameReader(spec.spectrogram)
    index = spec.spectrogram.index
    keys = dict(zip(index.list("clip_id"), index.list("key"), strict=True))
    parts = [_copy_sequences(spec, {clip: key for clip, key in keys.items() if key in spec.known})]
    copied = set(parts[0]["clip_id"].to_pylist())
    new = [clip for clip in keys if clip not in copied]
    for batch in clip_batches(new, reader.num_frames, frames_per_batch=_FRAMES_PER_BATCH):
        tokens = tokens_column(spec.encode(vocabulary, reader.read(batch)))
        columns = {"clip_id": pa.array(batch, pa.string()), "tokens": tokens, "key": [keys[clip] for clip in batch]}
        parts.append(pa.table(columns).cast(_ROWS_SCHEMA))
    rows = pa.concat_tables(parts)
    order = pc.index_in(pa.array(list(keys), pa.string()), rows["clip_id"].combine_chunks())
    with spec.memo.writing(spec.name, clips=len(keys), computed=len(new)) as folder:
        pq.write_table(rows.take(order), folder / _ROWS, compression="zstd")
    return SequencesReport(spec.name, len(new), len(keys) - len(new))


def _copy_sequences(spec: SequencesSpec, clips: dict[str, str]) -> pa.Table:
    """Return the rows of clips (clip id -> key) that other entries of the memo hold, under the ids they have now.

    Clips of entries that are damaged or gone have none.
    """
    parts = [_ROWS_SCHEMA.empty_table()]
    for name in sorted(set(spec.known.values())):
        ids = [clip for clip, key in clips.items() if spec.known[key] == name]
        rows = _donated_rows(spec.memo, name)
        if not rows.num_rows:
            continue
        places = pc.index_in(pa.array([clips[clip] for clip in ids], pa.string()), rows["key"].combine_chunks())
        columns = {"clip_id": pa.array(ids, pa.string()), **{n: rows[n].take(places) for n in ("tokens", "key")}}
        parts.append(pa.table(columns).cast(_ROWS_SCHEMA))
    return pa.concat_tables(parts)


def write_sequences(path: Path, names: Sequence[str], entries: dict[str, Entry], vocabulary: Vocabulary) -> None:
    """Write the artifact from finished entries, one at a time, in the order of `names`. Raises LostEntry."""
    TOKENS.write_parts(path, (_read_rows(entries[name]) for name in names), _metadata(vocabulary))


def write_table_sequences(path: Path, spectrogram: Spectrogram, vocabulary: Vocabulary) -> int:
    """Write the artifact from the table of external tokens, for all clips with frames, and return how many these are.

    Raises CorpusError where the table has not all of them, or not as many tokens as they are long.
    """
    params = recorded_params(vocabulary)
    table, index = read_token_table(params), spectrogram.index
    usable = index.columns.filter(pc.equal(index["status"], "ok"))
    clips, frames = usable["clip_id"].to_pylist(), usable["num_frames"].to_numpy()
    require_clips(table, dict(zip(clips, (frames / spectrogram.frame_rate).tolist(), strict=True)), params)
    starts = range(0, len(clips), _ROWS_PER_GROUP)
    TOKENS.write_parts(
        path, (_table_rows(table, clips[start : start + _ROWS_PER_GROUP]) for start in starts), _metadata(vocabulary)
    )
    return len(clips)


def _table_rows(table: ExternalTokens, clips: Sequence[str]) -> pa.Table:
    tokens = tokens_column([table.clips[table.rows[clip]] for clip in clips])
    return pa.table({"clip_id": pa.array(clips, pa.string()), "tokens": tokens}).cast(TOKENS.arrow)


def _metadata(vocabulary: Vocabulary) -> TokensMetadata:
    return {
        "fold": vocabulary.metadata["fold"],
        "vocabulary": vocabulary.digest(),
        "vocabulary_size": vocabulary.num_tokens,
        "num_codebooks": vocabulary.num_codebooks,
        "frame_rate": vocabulary.frame_rate,
        SETTINGS: vocabulary.metadata.get(SETTINGS, {}),
    }


def select_sequences(path: Path, clip_ids: pa.ChunkedArray, selected_path: Path) -> None:
    """Write the token sequences of some clips of an artifact as another one, in its order; a part is in memory at a time.

    The file depends on these clips alone, to the byte, not on the shards that they come from.
    """
    chosen = clip_ids.combine_chunks()
    with pq.ParquetFile(path) as file:
        parts = (pa.Table.from_batches([batch]) for batch in file.iter_batches(_ROWS_PER_GROUP))
        selected = (part.filter(pc.is_in(part["clip_id"], chosen)) for part in parts)
        TOKENS.write_parts(selected_path, _in_groups(selected), TOKENS.read_metadata(path))


def _in_groups(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of parts of any size in groups of one size, the last one shorter."""
    waiting = TOKENS.arrow.empty_table()
    for part in parts:
        waiting = pa.concat_tables([waiting, part.cast(TOKENS.arrow)])
        if len(waiting) >= _ROWS_PER_GROUP:
            yield _copied(waiting.slice(0, _ROWS_PER_GROUP))
            waiting = waiting.slice(_ROWS_PER_GROUP)
    yield _copied(waiting)


def _copied(rows: pa.Table) -> pa.Table:
    return rows.combine_chunks().take(pa.array(range(len(rows)), pa.int64()))


def _read_rows(entry: Entry, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(entry.read(_ROWS)), columns=columns)


def _donated_rows(memo: Memo, name: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of another entry; none where it is damaged or gone."""
    try:
        entry = memo.find(name)
        return _read_rows(entry, columns) if entry else _ROWS_SCHEMA.empty_table()
    except LostEntry:
        return _ROWS_SCHEMA.empty_table()
