"""The benchmark programs run, at sizes that say nothing about speed."""

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import features, memory, reading, sampling, tokenise
from benchmarks.audio import write_flacs


def test_marked_copies_hold_the_same_sound_and_other_bytes(tmp_path: Path) -> None:
    paths = write_flacs(tmp_path, 41, seconds=0.1)
    assert paths[0].read_bytes() != paths[40].read_bytes()
    np.testing.assert_array_equal(soundfile.read(paths[0])[0], soundfile.read(paths[40])[0])


def test_tokenising_and_reading_report_a_row_each_way() -> None:
    rows = tokenise.run_kinds(2000, 16, 1, 1, time.process_time)
    assert [row["vocabulary"].split(",")[0] for row in rows] == ["kmeans", "residual", "bands"]
    (row,) = tokenise.run(2000, [64], 16, 1, 1)
    assert row["differ"] == "0 of 2000"
    assert row["of FAISS"] > 0
    rows = reading.run(clips=8, batch=4, batches=2, repeats=1)
    assert [row["what"] for row in rows[:4]] == ["sonolex", "tensorstore alone", "zarr-python", "memory map"]
    assert all(row["clips/s"] > 0 for row in rows)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the counters of /proc/self/io")
@pytest.mark.slow
def test_a_small_sample_reads_the_chunks_of_its_clips_alone() -> None:
    small = sampling.run(256, [0.001])[0]
    assert small["of the store"] < 0.05
    assert small["read / visited"] < 1.25


@pytest.mark.slow
def test_memory_has_a_row_for_every_stage() -> None:
    rows = memory.run([60])
    assert [row["stage"] for row in rows][0::7] == ["corpus", "report"]
    assert all(row["60 clips, MB"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lhotse") is None, reason="needs the peers: requirements-bench.lock")
def test_features_compare_with_every_peer() -> None:
    rows = features.run(clips=20, peer_clips=18, repeats=1, dtype="uint8", processes=[1])
    assert [row["what"] for row in rows[4:]] == ["sonolex", "torchaudio", "lhotse", "transformers"]
