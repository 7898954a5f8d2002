"""The benchmark programs run, at sizes that say nothing about speed."""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from experiments import run_experiment

from benchmarks import (
    encoders,
    epoch,
    features,
    memory,
    predicting,
    probe,
    reading,
    recombining,
    sampling,
    tokenise,
    training,
)
from benchmarks.audio import write_flacs
from benchmarks.contenders import BASE, CONTENDERS, TINY, Shape, make_learner
from benchmarks.processes import Sample, Usage, run_measured
from pipeline.artifacts.layout import Layout


def test_marked_copies_hold_the_same_sound_and_other_bytes(tmp_path: Path) -> None:
    paths = write_flacs(tmp_path, 41, seconds=0.1)
    assert paths[0].read_bytes() != paths[40].read_bytes()
    np.testing.assert_array_equal(soundfile.read(paths[0])[0], soundfile.read(paths[40])[0])


def test_tokenising_and_reading_report_a_row_each_way() -> None:
    rows = tokenise.run_kinds(2000, 16, 1, 1, time.process_time)
    assert [row["vocabulary"].split(",")[0] for row in rows] == ["kmeans", "residual", "bands"]
    (row,) = tokenise.run(2000, [64], 16, 1, 1)
    assert row["differ"] == "0 of 2000"
    rows = reading.run(clips=8, batch=4, batches=2, repeats=1)
    ways = ["sonolex", "sonolex, float32", "tensorstore alone", "zarr-python", "memory map"]
    assert [row["what"] for row in rows[:5]] == ways
    assert all(row["clips/s"] > 0 for row in rows)


def test_a_probe_of_tokens_and_frames_reports_every_fold(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[majority]",
        "experiment.token_models=[bag_of_tokens]",
        "experiment.vocabularies=[kmeans]",
    )
    rows = probe.run(Layout(run_experiment(tmp_path / "experiment", settings)), "kmeans")
    names = ["mean and deviation of bands", "texture statistics, frames", "texture statistics, tokens of kmeans"]
    assert [row["features"] for row in rows] == names
    assert [row["mean"] for row in rows] == [row["fold 1"] for row in rows]
    assert all(100 / 3 < float(row["mean"]) <= 100 for row in rows)  # tones, noises and sweeps


def test_ratios_of_rates_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a busy machine makes one of the two: a rounded ratio was 0 there."""
    rates = {"ours": 1e-6, "theirs": 10.0, "gemm": 100.0}

    def rate(frames: int, work: Any, clock: Any = None) -> float:
        work()
        return rates[work.__name__]

    monkeypatch.setattr(tokenise, "_rate", rate)
    (row,) = tokenise.run(100, [8], 4, 1, 1)
    assert (row["of FAISS"], row["of GEMM"]) == (1e-7, 1e-8)

    seconds = iter((100.0, 1e-3))  # of a step, and of ten products
    monkeypatch.setattr(training, "seconds_of", lambda work: next(seconds))
    shape = Shape(width=16, depth=1, heads=2, frames=64, batch=4, classes=5)
    row = training.utilisation(shape, torch.device("cpu"), 1, fast=False)
    assert row["of it"] == pytest.approx(shape.flops() / 100 / (10 * 2 * 256**3 / 1e-3))
    assert 0 < row["of it"] < 1e-6


def test_a_steps_operations_are_counted_by_hand() -> None:
    shape = Shape(width=2, depth=3, heads=1, frames=32, batch=5, classes=7)
    assert shape.grid == (2, 8)
    linear, attention, patches, head = 12 * 4 * 18, 2 * 18 * 18 * 2, 256 * 2 * 16, 2 * 7
    assert shape.flops() == 6 * 5 * (3 * (linear + attention) + patches + head)
    assert [TINY._replace(stride=stride).positions for stride in (16, 10)] == [258, 602]
    assert BASE._replace(stride=10).positions == 1214


def test_training_steps_have_a_row_each() -> None:
    shape = Shape(width=16, depth=1, heads=2, frames=64, batch=4, classes=5)
    assert [row["clips from"] for row in training.waiting(shape, 8, 1)] == ["memory", "disk"]
    learner = make_learner(shape)
    before = next(learner.model.parameters()).clone()
    learner.one_step()
    assert not torch.equal(before, next(learner.model.parameters()))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the peers: requirements-bench.lock")
def test_training_compares_with_every_contender() -> None:
    shape = Shape(width=16, depth=1, heads=2, frames=64, batch=4, classes=5)
    rows = training.run(shape, list(CONTENDERS), 1, 1)
    assert [row["what"] for row in rows] == list(CONTENDERS)
    assert rows[0]["processor"] == 1


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the counters of /proc/self/io")
@pytest.mark.slow
def test_a_small_sample_reads_the_chunks_of_its_clips_alone() -> None:
    small = sampling.run(256, [0.001])[0]
    assert small["of the store"] < 0.05
    assert small["read / visited"] < 1.25


@pytest.mark.slow
def test_memory_has_a_row_for_every_stage() -> None:
    rows = memory.run([60])
    assert [rows[0]["stage"], rows[-1]["stage"]] == ["corpus", "report"]
    assert all(row["60 clips, MB"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lhotse") is None, reason="needs the peers: requirements-bench.lock")
def test_features_compare_with_every_peer() -> None:
    rows = features.run(clips=20, peer_clips=18, repeats=1, dtype="uint8", processes=[1])
    assert [row["what"] for row in rows[4:]] == ["sonolex", "torchaudio", "lhotse", "transformers"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_prediction_is_compared_with_its_floor_and_with_hugging_face() -> None:
    rows = {row["what"]: row for row in predicting.run(None, clips=20, repeats=1)}
    for model in predicting.MODELS:
        assert rows[f"sonolex predict: {model}"]["of the floor"] > 0
        assert rows[f"{model}: forward"]["ms per clip"] > 0
    assert rows["transformers' pipeline: AST of the same size"]["clips/s"] > 0


def test_a_recombined_corpus_has_every_class_in_both_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recombining, "_PIECE", 1)
    recordings = [np.sin(np.arange(4000, dtype=np.float32) * pitch) for pitch in (0.1, 0.2, 0.3)]
    rows = recombining.write_corpus(tmp_path, recordings, training=2200, test=527, seconds=0.25)
    names = {
        role: {name for row in rows if row["fold"] == role for name in row["label"].split(";")}
        for role in ("train", "test")
    }
    assert len(names["train"]) == 527
    assert names["test"] == names["train"]
    assert [sum(row["fold"] == role for row in rows) for role in ("train", "test")] == [2200, 527]
    assert len({(row["path"], row["start"]) for row in rows}) == len(rows)
    lengths = {path.name: soundfile.info(path).duration for path in tmp_path.iterdir()}
    assert all(float(row["start"]) + 0.25 <= lengths[row["path"]] for row in rows)
    counts = [sum(name in row["label"].split(";") for row in rows[:2200]) for name in ("/m/09x0r", "/m/07hvw1")]
    assert counts[0] > 10 * counts[1]  # the first class of AudioSet and the last


def test_a_measured_program_reports_what_it_took_and_how_it_failed(tmp_path: Path) -> None:
    usage = run_measured([sys.executable, "-c", "sum(range(10**6))"], tmp_path, os.environ)
    assert usage.processor_seconds > 0
    assert usage.seconds > 0
    with pytest.raises(RuntimeError, match="no such luck"):
        run_measured([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path, os.environ)


def test_memory_over_time_is_read_off_its_samples() -> None:
    usage = Usage(3.0, 1.0, [Sample(1.0, 10, 7), Sample(2.0, 30, 8), Sample(3.0, 20, 9)])
    assert usage.peak == 30
    assert [usage.anonymous_at(part) for part in (0.0, 0.5, 1.0)] == [7, 9, 9]
    assert Usage(0.1, 0.1, []).anonymous_at(0.5) == 0


@pytest.mark.slow
def test_an_epoch_has_a_row_for_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recombining, "_PIECE", 1)
    (tmp_path / "audio").mkdir()
    cuts = recombining.write_corpus(
        tmp_path / "audio", recombining.read_recordings([]), training=527, test=527, seconds=0.5
    )
    workspace = epoch.make_workspace(tmp_path / "w", tmp_path / "audio", cuts, epoch.overrides("token_transformer", 1))
    rows = {row["stage"]: row for row in epoch.run(workspace, "token_transformer")}
    assert rows["tokenize"]["clips/s"] > 0
    assert 0 <= rows["train"]["waiting"] < 1
    assert rows["train"]["peak MB"] > rows["corpus"]["peak MB"]


@pytest.mark.slow
def test_models_on_tokens_are_compared_with_the_same_on_frames(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[majority]",
        "experiment.token_models=[bag_of_tokens]",
        "experiment.vocabularies=[kmeans]",
    )
    rows = encoders.run(
        run_experiment(tmp_path / "experiment", settings), "1", "kmeans", clips=4, batch_size=2, repeats=1
    )
    assert [row["clips"] for row in rows[:5]] == ["plain", "plain", "augmented", "augmented", "retokenised"]
    assert [row["over frames"] for row in rows if not row["model"].endswith("-kmeans")] == [1, 1, 1, 1]
    tokens, frames, *_, retokenised = rows[:5]
    assert frames["read MB"] == 24 * tokens["read MB"]  # bands of float16 for tokens of two bytes
    assert retokenised["read MB"] == frames["read MB"]
