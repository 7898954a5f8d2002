"""Vocabularies and tokens are the same to the bit, however many threads and workers compute them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, make_development, make_spectrogram
from probe_vocabularies import VOCABULARIES
from threadpoolctl import threadpool_info

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.splits import SPLIT
from pipeline.execution.threads import map_ahead, map_threads, num_threads, single_threaded, usable_threads
from pipeline.vocabulary.registry import KINDS

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def make_frames(num_clips: int = 24, num_frames: int = 800, num_mels: int = 64) -> dict[str, np.ndarray]:
    """Return clips far from 0, whose scores are rounded coarsely: of some frames, rounding decides which code is nearest."""
    generator = np.random.default_rng(0)
    sounds = generator.normal(-60, 3, (40, num_mels))  # each five frames long, so that pairs of tokens repeat
    frames = {}
    for clip in range(num_clips):
        drawn = np.repeat(sounds[generator.integers(0, len(sounds), num_frames // 5)], 5, axis=0)
        frames[f"c{clip:02}"] = generator.normal(drawn, 3).astype(np.float16).astype(np.float32)
    return frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    frames = make_frames()
    spectrogram = make_spectrogram(folder / "spectrogram", frames, clips_per_shard=6)
    roles = ["train"] * (len(frames) - 1) + ["test"]
    SPLIT.write(
        folder / "split.parquet", {"clip_id": list(frames), "role": roles}, {"fold": "1", "seed": 0, "rule": ""}
    )
    make_development(folder / "development.parquet", spectrogram, folder / "split.parquet")
    return folder


def fit_in_a_process(source: Path, folder: Path, threads: dict[str, str], workers: int) -> dict[str, str]:
    """Return the digests of the files that a process of its own writes: vocabularies of every kind and their tokens."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | threads
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, str(REPOSITORY / "tests/probe_vocabularies.py"), str(source), str(folder), str(workers)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    made = [file for part in ("vocabulary", "tokens") for file in (folder / part).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file_digest(file) for file in made}


@pytest.fixture(scope="module")
def on_one_thread(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch, the extra `neural`")
    made = fit_in_a_process(source, tmp_path_factory.mktemp("one"), dict.fromkeys(VARIABLES, "1"), workers=1)
    assert {path.split("/")[1] for path in made} == set(VOCABULARIES)
    return made


def test_every_kind_is_tried() -> None:
    assert {own["kind"] for own in VOCABULARIES.values()} == set(KINDS) - {"external"}  # which computes nothing


@pytest.mark.parametrize(
    ("threads", "workers"),
    [
        ({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}, 1),
        pytest.param({}, 2, marks=pytest.mark.slow),
        pytest.param({"OMP_NUM_THREADS": "2"}, 1, marks=pytest.mark.slow),
        pytest.param({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2"}, 1, marks=pytest.mark.slow),
        pytest.param({}, 1, marks=pytest.mark.slow),
        pytest.param({"OMP_NUM_THREADS": "4"}, 2, marks=pytest.mark.slow),
    ],
)
def test_threads_and_workers_change_no_bit(
    source: Path, tmp_path: Path, on_one_thread: dict[str, str], threads: dict[str, str], workers: int
) -> None:
    made = fit_in_a_process(source, tmp_path, threads, workers)
    assert sorted(path for path in made.keys() | on_one_thread if made.get(path) != on_one_thread.get(path)) == []


def library_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


def test_limits_hold_for_libraries_and_maps_and_end() -> None:
    with num_threads(3):
        assert (library_threads(), usable_threads()) == ({3}, 3)
        with single_threaded():
            assert (library_threads(), usable_threads()) == ({1}, 3)
            with num_threads(2):
                assert (library_threads(), usable_threads()) == ({2}, 2)
            assert library_threads() == {1}
        assert (library_threads(), usable_threads()) == ({3}, 3)


def test_without_a_limit_openmps_variable_counts_then_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, expected in (("5", 5), ("4,2", 4), ("", 7), ("0", 7), ("many", 7)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        monkeypatch.setattr("pipeline.execution.threads.num_cores", lambda: 7)
        assert usable_threads() == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_keeps_the_order_and_computes_on_one_thread_each(count: int) -> None:
    seen = set()

    def compute(number: int) -> tuple[int, set[int], int, list[int]]:
        time.sleep(0.02 * (number == 0))
        seen.add(threading.get_ident())
        return number, library_threads(), usable_threads(), map_threads(lambda other: other + number, range(3))

    with num_threads(count):
        before = library_threads()
        found = map_threads(compute, range(6))
        assert library_threads() == before
    assert [number for number, *_ in found] == list(range(6))
    assert all(libraries == {1} and inner == [n, n + 1, n + 2] for n, libraries, _, inner in found)
    assert {threads for *_, threads, _ in found} == {1}
    assert len(seen) == 1 if count == 1 else 1 < len(seen) <= count
    assert map_threads(compute, []) == []


def test_an_error_in_a_map_is_raised() -> None:
    with num_threads(2), pytest.raises(ZeroDivisionError):
        map_threads(lambda number: 1 // number, [1, 0, 2])


def test_a_map_runs_a_few_items_ahead_in_order_and_ends_with_its_caller() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: -number, items(), 2)
    assert [next(results) for _ in range(10)] == [-number for number in range(10)]
    assert len(taken) <= 10 + 4
    results.close()
    assert len(taken) <= 10 + 4
    assert list(map_ahead(abs, [-3, -1, -2], 4)) == [3, 1, 2]
