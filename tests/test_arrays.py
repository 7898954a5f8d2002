"""Arrays of many chunks: any Zarr program reads them, the same bytes each time, zeros too; a failing disk is an OSError."""

import errno
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from test_artifacts import FRONT_END

from pipeline.artifacts.arrays import ArraySchema
from pipeline.artifacts.spectrogram import FRAMES


def _write(path: Path, values: np.ndarray) -> zarr.Group:
    group = FRAMES.create(path, FRONT_END)
    schema = ArraySchema(("frame", "mel"), (str(values.dtype),), "")
    schema.write(group, "shard", values, (16, values.shape[1]))
    return group


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_chunks_come_back_and_are_the_same_bytes_each_time(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (103, 4)).astype(dtype)
    files = []
    for name in ("one", "another"):
        array: Any = _write(tmp_path / name, values)["shard"]
        np.testing.assert_array_equal(array[...], values)
        files.append((tmp_path / name / "shard" / "c" / "0" / "0").read_bytes())
    assert files[0] == files[1]


def test_chunks_of_zeros_are_written(tmp_path: Path) -> None:
    """Zarr leaves them out by default; a lost file would then read as silence."""
    _write(tmp_path / "zeros", np.zeros((64, 4), np.float32))
    assert (tmp_path / "zeros" / "shard" / "c" / "0" / "0").stat().st_size > 64


def test_a_disk_that_takes_no_more_is_an_oserror(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.random.default_rng(0).random((4096, 4)).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(OSError, match="shard") as raised:
            _write(tmp_path / "frames", values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
