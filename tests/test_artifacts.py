"""Artifacts: what was written opens again; what was cut short, edited, or made otherwise is refused by name."""

import mmap
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import OF_A_MODEL

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.spectrogram import FRAMES, INDEX, open_spectrogram
from pipeline.artifacts.splits import SPLIT, open_split
from pipeline.artifacts.tables import TableSchema
from pipeline.artifacts.tokens import TOKENS, load_sequences, open_tokens, token_arrays
from pipeline.artifacts.vocabulary import VOCABULARY, open_vocabulary, special_tokens
from pipeline.errors import ArtifactError

FRONT_END: dict[str, Any] = {
    "front_end": "kaldi",
    "units": "ln(power)",
    "sample_rate": 16000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": 4,
    "f_min": 20.0,
    "f_max": 8000.0,
    "log_floor": -15.9,
    "frame_rate": 100.0,
    "params": {"kind": "kaldi"},
    "dtype": "float32",
    "scale": 1.0,
    "offset": 0.0,
}


def _split(path: Path) -> Path:
    SPLIT.write(path, {"clip_id": ["a", "b"], "role": ["train", "test"]}, {"fold": "1", "seed": 0, "rule": "published"})
    return path


def _spectrogram(path: Path, index: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None) -> Path:
    group = FRAMES.create(path / "frames.zarr", FRONT_END | (metadata or {}))
    frames = np.arange(40, dtype=np.float32).reshape(10, 4)
    FRAMES.arrays["*"].write(group, "first", frames)
    rows = {
        "clip_id": ["a", "b", "c"],
        "key": ["key of a", "key of b", "key of c"],
        "shard": ["first", "first", ""],
        "start": [0, 6, 0],
        "num_frames": [6, 4, 0],
        "sum": [0.0, 0.0, 0.0],
        "sum_of_squares": [0.0, 0.0, 0.0],
        "sample_rate": [16000, 16000, 0],
        "num_channels": [1, 2, 0],
        "bandwidth": [8000.0, 4000.0, 0.0],
        "status": ["ok", "ok", "failed"],
        "reason": ["", "", "silent"],
        "message": ["", "", "silent all through"],
    }
    INDEX.write(
        path / "index.parquet",
        rows | (index or {}),
        {"shards": {"first": 10}, "front_end": FRONT_END | (metadata or {}), "version": "test"},
    )
    return path


def _vocabulary(path: Path, **metadata: Any) -> Path:
    head = {
        "kind": "kmeans",
        "additive": True,
        "num_tokens": 3,
        "num_codebooks": 1,
        "normalisation": "standardise",
        "features": {"deltas": 0, "stack": 1, "groups": 1},
        "bands": [[0, 4]],
        "bpe": {},
        "own": {},
        **special_tokens(3),
        "fold": "1",
        "role": "train",
        "front_end": FRONT_END,
        "seed": 0,
        "sample": {},
        "fit": {},
    }
    arrays = {
        "codebooks": np.zeros((1, 3, 4), np.float32),
        "mean": np.zeros(4, np.float32),
        "scale": np.ones(4, np.float32),
        "delta_scale": np.ones(4, np.float32),
        "centre": np.empty(0, np.float32),
        "components": np.empty((0, 0), np.float32),
        "levels": np.tile(np.float32([0, 1]), (1, 3, 1)),
        "merges": np.empty((0, 2), np.int32),
        "counts": np.zeros((1, 3), np.int64),
    }
    VOCABULARY.write(path, arrays, head | metadata)
    return path


def _tokens(path: Path, tokens: list[list[list[int]]], **metadata: Any) -> Path:
    ids = [f"clip-{i}" for i in range(len(tokens))]
    head = {"fold": "1", "vocabulary": "x", "vocabulary_size": 9, "num_codebooks": 2, "frame_rate": 100.0} | metadata
    TOKENS.write(path, {"clip_id": ids, "tokens": tokens}, head)
    return path


def test_a_table_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = _split(tmp_path / "1.parquet"), _split(tmp_path / "2.parquet")
    assert first.read_bytes() == second.read_bytes()
    assert open_split(first).metadata == {"fold": "1", "seed": 0, "rule": "published"}
    assert list(tmp_path.iterdir()) == [first, second] or len(list(tmp_path.iterdir())) == 2  # nothing partial is left


def test_a_missing_table_names_the_stage_to_rerun(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"1\.parquet: file: expected a split table, found no file; rerun .* split"):
        open_split(tmp_path / "1.parquet")


def test_a_table_cut_short_is_refused(tmp_path: Path) -> None:
    path = _split(tmp_path / "1.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="expected a whole Parquet file"):
        open_split(path)


def test_a_table_edited_with_another_program_is_refused(tmp_path: Path) -> None:
    path = _split(tmp_path / "1.parquet")
    table = pq.read_table(path)
    edited = table.set_column(1, table.schema.field("role"), pa.array(["train", "train"]))
    pq.write_table(edited, path)
    with pytest.raises(ArtifactError, match=r"digest: expected .* as written, found .*: edited afterwards"):
        open_split(path)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ArtifactError, match="expected Sonolex metadata, found none"):
        open_split(path)


def test_a_flipped_byte_in_a_table_is_refused(tmp_path: Path) -> None:
    path = _split(tmp_path / "1.parquet")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        open_split(path)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = _split(tmp_path / "1.parquet")
    with pytest.raises(ArtifactError, match="artifact: expected tokens, found split"):
        open_tokens(path)


def test_metadata_are_checked_on_writing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="metadata seed: expected int, found str 'zero'"):
        SPLIT.write(tmp_path / "x", {"clip_id": [], "role": []}, {"fold": "1", "seed": "zero", "rule": ""})
    assert not list(tmp_path.iterdir())


class SomeMetadata(TypedDict):
    size: int
    rate: float
    whole: bool


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"size": 3, "rate": 1.5, "whole": True}, None),
        ({"size": 3, "rate": 1, "whole": False, "settings": {}}, None),
        ({"size": 3, "rate": 1.5}, "metadata whole: expected bool, found nothing"),
        ({"size": 3.0, "rate": 1.5, "whole": True}, "metadata size: expected int, found float 3.0"),
        ({"size": True, "rate": 1.5, "whole": True}, "metadata size: expected int, found bool True"),
        ({"size": 3, "rate": False, "whole": True}, "metadata rate: expected float, found bool False"),
        ({"size": 3, "rate": 1.5, "whole": 1}, "metadata whole: expected bool, found int 1"),
        ({"size": 3, "rate": 1.5, "whole": True, "more": 0}, "metadata more: expected only size, rate, whole"),
    ],
)
def test_metadata_have_the_types_of_their_schema(tmp_path: Path, found: dict[str, Any], message: str | None) -> None:
    schema = TableSchema("tested", 1, "split", {"clip_id": pa.string()}, SomeMetadata)
    values: Any = found
    with pytest.raises(ArtifactError, match=message) if message else nullcontext():
        schema.write(tmp_path / "x.parquet", {"clip_id": []}, values)
        assert schema.open(tmp_path / "x.parquet").metadata == found


def test_a_digest_follows_from_the_rows_however_they_come(tmp_path: Path) -> None:
    columns = {"clip_id": pa.string(), "labels": pa.list_(pa.int32())}
    schema = TableSchema("tested", 1, "split", columns, SomeMetadata)
    values: SomeMetadata = {"size": 3, "rate": 1.5, "whole": True}
    ids = [f"clip-{i}" for i in range(9000)]  # more than two batches of the digest
    table = pa.table({"clip_id": ids, "labels": [[i, i + 1][: i % 3] for i in range(9000)]}, schema=schema.arrow)
    digests = {
        schema.write_parts(tmp_path / f"{size}.parquet", (table.slice(at, size) for at in range(0, 9000, size)), values)
        for size in (9000, 4096, 1000, 4097)
    }
    assert len(digests) == 1
    assert [schema.open(path).list("clip_id") for path in tmp_path.iterdir()] == [ids] * 4
    swapped = table.take(pa.array([*range(8998), 8999, 8998]))
    assert schema.write(tmp_path / "swapped.parquet", swapped, values) not in digests


def test_clips_check_ids_and_labels(tmp_path: Path) -> None:
    columns = {
        "clip_id": ["a", "a"],
        "source": ["a.wav", "b.wav"],
        "member": ["", ""],
        "offset": [0, 0],
        "size": [0, 0],
        "start": [0.0, 0.0],
        "duration": [0.0, 0.0],
        "labels": [[0], [1]],
        "group": ["a", "b"],
        "fold": ["1", "2"],
        "content": ["x", "y"],
        "unknown": [[], []],
        "weight": [0.0, 0.0],
    }
    metadata = {"corpus": "table", "classes": ["dog", "rain"], "label_kind": "one", "licence": ""}
    CLIPS.write(tmp_path / "clips.parquet", columns, metadata)
    with pytest.raises(ArtifactError, match="clip_id: expected unique ids, found 1 repeated"):
        open_clips(tmp_path / "clips.parquet")
    CLIPS.write(tmp_path / "clips.parquet", columns | {"clip_id": ["a", "b"], "labels": [[0], [2]]}, metadata)
    with pytest.raises(ArtifactError, match="labels: expected below 2, found 2"):
        open_clips(tmp_path / "clips.parquet")
    CLIPS.write(tmp_path / "clips.parquet", columns | {"clip_id": ["a", "b"], "unknown": [[], [3]]}, metadata)
    with pytest.raises(ArtifactError, match="unknown: expected below 2, found 3"):
        open_clips(tmp_path / "clips.parquet")


def test_a_spectrogram_opens(tmp_path: Path) -> None:
    spectrogram = open_spectrogram(_spectrogram(tmp_path / "s"))
    assert (spectrogram.n_mels, spectrogram.frame_rate) == (4, 100.0)


@pytest.mark.parametrize(
    ("index", "metadata", "message"),
    [
        ({"start": [0, 5, 0]}, {}, "row 1: expected start 6 in shard first, found 5"),
        ({"num_frames": [6, 3, 0]}, {}, "num_frames: expected sums of"),
        ({"num_frames": [6, 4, 2]}, {}, "num_frames: expected 0 for failed clips, found 2"),
        ({}, {"frame_rate": 50.0}, "frame_rate: expected 100.0"),
        ({}, {"win_length": 600}, "win_length: expected at most n_fft 512, found 600"),
        ({}, {"f_max": 9000.0}, "f_max: expected .* 8000.0 Hz, found 9000.0"),
        ({}, {"dtype": "float16"}, "dtype: expected float16, found float32"),
        ({}, {"n_mels": 5}, r"shape: expected \(10, 5\), found \(10, 4\)"),
    ],
)
def test_a_spectrogram_that_contradicts_itself_is_refused(
    tmp_path: Path, index: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_spectrogram(_spectrogram(tmp_path / "s", index, metadata))


def test_a_spectrogram_without_a_shard_is_refused_not_read_as_silence(tmp_path: Path) -> None:
    path = _spectrogram(tmp_path / "s")
    (path / "frames.zarr/first/c/0/0").unlink()
    with pytest.raises(ArtifactError, match="shard: expected the file first/c/0/0, found none"):
        open_spectrogram(path)


def test_a_vocabulary_opens_and_knows_itself_by_content(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(_vocabulary(tmp_path / "1.zarr"))
    assert (vocabulary.num_tokens, vocabulary.padding_token, vocabulary.mask_token) == (3, 3, 4)
    assert vocabulary.digest() == open_vocabulary(_vocabulary(tmp_path / "2.zarr")).digest()
    assert vocabulary.digest() != open_vocabulary(_vocabulary(tmp_path / "3.zarr", seed=1)).digest()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"padding_token": 0}, "padding_token: expected 3 for num_tokens 3, found 0"),
        ({"role": "test"}, "role: expected train, found test"),
        ({"bands": [[0, 3]]}, "shape of codebooks"),
        ({"bands": [[1, 5]]}, "bands: expected within the 4 features"),
        ({"features": {"deltas": 0, "stack": 0, "groups": 1}}, "features.stack: expected at least 1, found 0"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_vocabulary(_vocabulary(tmp_path / "1.zarr", **metadata))


def test_a_flipped_byte_in_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = _vocabulary(tmp_path / "1.zarr")
    shard = path / "scale/c/0"
    content = bytearray(shard.read_bytes())
    content[2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"1\.zarr: scale: expected chunks as written"):
        open_vocabulary(path)


def test_a_vocabulary_of_another_front_end_is_refused(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(_vocabulary(tmp_path / "1.zarr"))
    other = open_spectrogram(_spectrogram(tmp_path / "s", metadata={"hop_length": 80, "frame_rate": 200.0}))
    with pytest.raises(ArtifactError, match=r"front_end\.hop_length .*expected 80, found 160"):
        vocabulary.require_front_end(other)


def test_tokens_come_back_as_they_went_in(tmp_path: Path) -> None:
    written = [[[1, 2, 3], [4, 5, 6]], [[7], [8]]]
    arrays = token_arrays(open_tokens(_tokens(tmp_path / "t", written)))
    assert [arrays["clip-0"].tolist(), arrays["clip-1"].tolist()] == written
    assert arrays["clip-0"].dtype == np.uint16


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_token_sequences_are_the_same_in_memory_and_in_a_mapped_file(tmp_path: Path, memory: int) -> None:
    written = [[[1, 2, 3], [4, 5, 6]], [[], []], [[7], [8]]]
    path = _tokens(tmp_path / "t", written)
    sequences = load_sequences(path, memory)
    assert [sequences[f"clip-{row}"].tolist() for row in range(3)] == written
    assert [sequences.num_tokens(f"clip-{row}") for row in range(3)] == [3, 0, 1]
    assert sequences["clip-0"].dtype == np.uint16
    assert "clip-2" in sequences
    assert "clip-3" not in sequences
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_token_sequences_beyond_the_memory_belong_to_a_file(tmp_path: Path, memory: int) -> None:
    tokens = load_sequences(_tokens(tmp_path / "t", [[[1, 2, 3], [4, 5, 6]]] * 2), memory)["clip-1"]
    owner = tokens
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner.base, mmap.mmap) == (memory == 0)


def test_parts_of_a_table_are_checked_as_the_whole_one_is(tmp_path: Path) -> None:
    path = _split(tmp_path / "1.parquet")
    metadata, parts = SPLIT.open_parts(path)
    whole = SPLIT.open(path)
    assert metadata == whole.metadata
    assert pa.concat_tables(parts).equals(whole.columns)
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, table.schema.field("role"), pa.array(["train", "train"])), path)
    _, parts = SPLIT.open_parts(path)
    with pytest.raises(ArtifactError, match=r"digest: expected .* as written, found .*: edited afterwards"):
        list(parts)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ArtifactError, match="expected a whole Parquet file"):
        SPLIT.open_parts(path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[[1, 2], [3]]], "clip-0: expected codebooks of equal length"),
        ([[[1, 2]]], "expected 2 lists per clip"),
        ([[[1, 9], [2, 3]]], "expected tokens below 9, found 9"),
    ],
)
def test_tokens_that_are_no_sequences_are_refused(tmp_path: Path, tokens: list[Any], message: str) -> None:
    path = _tokens(tmp_path / "t", tokens)
    for opened in (open_tokens, partial(load_sequences, memory=0)):
        with pytest.raises(ArtifactError, match=message):
            opened(path)


def test_predictions_must_be_finite_and_complete(tmp_path: Path) -> None:
    metadata = {
        "model": "ast",
        "fold": "1",
        "seed": 0,
        "classes": ["a", "b"],
        "label_kind": "one",
        "weights": "x",
    } | OF_A_MODEL
    for logits, message in (([[0.0, float("nan")]], "finite"), ([[0.0]], "2 a clip")):
        columns = {"clip_id": ["a"], "role": ["test"], "logits": logits, "targets": [[0.0, 1.0]]}
        PREDICTIONS.write(tmp_path / "p", columns, metadata)
        with pytest.raises(ArtifactError, match=message):
            open_predictions(tmp_path / "p")


def test_a_model_folder_refuses_other_weights(tmp_path: Path) -> None:
    metadata = {
        "model": "ast",
        "params": {"kind": "ast"},
        "classes": ["a"],
        "label_kind": "one",
        "reads": "frames",
        "input": {},
        "source": "",
        "front_end": {},
        "fold": "1",
        "seed": 0,
        "num_parameters": 3,
        "clips_seen": 4,
    }
    for name, value in (("one", 1.0), ("two", 2.0)):
        write_model(tmp_path / name, {"w": np.full(3, value, np.float32)}, metadata)
    assert open_model(tmp_path / "one").weights["w"].tolist() == [1, 1, 1]
    (tmp_path / "one/weights.safetensors").write_bytes((tmp_path / "two/weights.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: expected digest"):
        open_model(tmp_path / "one")


def test_an_artifact_of_other_settings_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "1.parquet"
    metadata = {"fold": "1", "seed": 0, "rule": "by hand"}
    columns = {"clip_id": ["a"], "role": ["train"]}
    SPLIT.write(path, columns, metadata | {SETTINGS: {"split": {"seed": 0, "num_folds": 5}, "train.epochs": 3}})
    require_current({"split": {"seed": 0, "num_folds": 5}, "train": {"epochs": 3, "other": 1}}, (SPLIT, path))
    expected = (
        r"1\.parquet: split\.seed: expected 1, as in params\.yaml, found 0 \(1 more settings differ\); rerun it with"
    )
    with pytest.raises(ArtifactError, match=expected):
        require_current({"split": {"seed": 1, "num_folds": 5}, "train": {}}, (SPLIT, path))
    SPLIT.write(path, columns, metadata)  # one that records none is of no settings
    require_current({}, (SPLIT, path))
