"""Several processes: the steps of one, every clip once, one writer, the same weights everywhere, and no one left waiting.

The quick tests look at one run of tests/probe_distributed.py under the real torchrun, on gloo.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import probe_distributed as probe
import pytest
import torch
from conftest import REPOSITORY
from networks import build, network
from test_training import PLAIN, SETTINGS

from pipeline.errors import SonolexError
from pipeline.execution import launch
from pipeline.models.network import Network
from pipeline.training import loop
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.batches import Batch, StoredBatch
from pipeline.training.classification import Classification
from pipeline.training.distributed import ALONE, DistributedContext, init_distributed
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def environment() -> dict[str, str]:
    """Return this process's environment for processes that find one another on this machine alone."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TERM": "dumb"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes saw that met without torchrun, which takes a third's time to start."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = (sys.executable, "-m", "probe_distributed", str(folder))
    started = [subprocess.Popen(command, env=meeting | {"RANK": rank}) for rank in ("0", "1")]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of the rest in two processes under torchrun."""
    folder = tmp_path_factory.mktemp("probe")
    command = [*TORCHRUN, "-m", "probe_distributed", str(folder), "more"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """Return what each of the two processes saw."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_take_the_steps_of_one(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    """Batches of 8, 8 and 7 clips of several lengths: parts of 4 and 3 clips taken as equals would be off by more.

    So would batch norms of each part alone, or gradients that do not flow through the other part's statistics.
    """
    one = probe.run_training(
        probe.EXACT, {"augmentation": PLAIN}, tmp_path / "c", ALONE, validation=probe.make_examples(9)
    )
    two = pair[0]["exact"]
    assert two["statistics"]
    for key in ("losses", "norms", "validation", "statistics"):
        assert two[key] == pytest.approx(one[key], rel=1e-4)
        assert pair[1]["exact"][key] == two[key]


def test_two_processes_in_parts_take_the_steps_of_one_at_once(pair: list[dict[str, Any]], tmp_path: Path) -> None:
    """Seven clips are parts of 2, 1 and 1 in one process, and of 1, 1 and 1 in the other."""
    whole = probe.run_training(probe.NO_BATCH_NORM, probe.ACCUMULATED | {"accumulate": 1}, tmp_path / "c", ALONE)
    for key in ("losses", "norms"):
        assert pair[0]["parts"][key] == pytest.approx(whole[key], rel=1e-4)
    assert pair[1]["parts"]["weights"] == pair[0]["parts"]["weights"]


def test_training_alone_draws_the_numbers_it_always_drew(tmp_path: Path) -> None:
    """Losses of the code before there were several processes: results of one process stay what they were."""
    model = build(probe.MODEL, {"n_mels": 6}, 3, seed=5)
    settings = TrainParams.model_validate(SETTINGS)
    trained = loop.train(
        model, settings, Classification(settings, loss_of("one"), 1, None), probe.make_examples(24), None,
        seed=3, on_epoch=lambda row, timing: None, checkpoint=tmp_path / "c",
    )  # fmt: skip
    losses = [row["loss"] for row in trained.history]
    assert losses == pytest.approx([1.276324, 1.044743, 0.984090, 0.925353], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["straight", "balanced", "resumed"])
def test_all_processes_end_with_the_same_weights_and_curves(ranks: list[dict[str, Any]], run: str) -> None:
    """Batch-norm statistics among them."""
    first, second = (rank[run] for rank in ranks)
    for key in ("weights", "losses", "norms", "validation"):
        assert first[key] == second[key]


@pytest.mark.slow
def test_every_clip_is_trained_on_once_an_epoch_by_one_process(ranks: list[dict[str, Any]]) -> None:
    epochs = SETTINGS["epochs"]
    taken = [rank["straight"]["taken"] for rank in ranks]
    assert sorted(taken[0] + taken[1]) == sorted(list(range(probe.NUM_CLIPS)) * epochs)
    firsts = [set(rows[: len(rows) // epochs]) for rows in taken]
    assert not firsts[0] & firsts[1]


@pytest.mark.slow
def test_balanced_rows_are_those_of_one_process(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    one = probe.run_training(probe.MODEL, {"sampling": "balanced"}, tmp_path / "c", ALONE)
    both = ranks[0]["balanced"]["taken"] + ranks[1]["balanced"]["taken"]
    assert Counter(both) == Counter(one["taken"])
    assert Counter(both) != Counter(list(range(probe.NUM_CLIPS)) * SETTINGS["epochs"])  # with replacement


@pytest.mark.slow
def test_augmentation_draws_by_seed_epoch_and_rank(ranks: list[dict[str, Any]]) -> None:
    seeds = [rank["straight"]["seeds"] for rank in ranks]
    assert len({*seeds[0], *seeds[1]}) == 2 * SETTINGS["epochs"]
    assert [rank["resumed"]["seeds"][2:] for rank in ranks] == [of_rank[2:] for of_rank in seeds]


@pytest.mark.slow
def test_a_run_killed_in_two_processes_ends_as_an_undisturbed_one(ranks: list[dict[str, Any]], folder: Path) -> None:
    for rank in ranks:
        for key in ("weights", "losses"):
            assert rank["resumed"][key] == rank["straight"][key]
        epochs = len(rank["resumed"]["taken"]) / len(rank["straight"]["taken"]) * SETTINGS["epochs"]
        assert epochs == 2  # the other two stood in the checkpoint
    assert not (folder / "killed").exists()


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(ranks: list[dict[str, Any]], folder: Path) -> None:
    resumed = probe.run_training(probe.MODEL, {}, folder / "left", ALONE)
    assert resumed["losses"][:2] == ranks[0]["straight"]["losses"][:2]
    assert resumed["losses"][2:] == pytest.approx(ranks[0]["straight"]["losses"][2:], abs=0.3)
    assert len(resumed["taken"]) == 2 * probe.NUM_CLIPS


def test_predictions_hold_every_clip_once_and_are_those_of_one_process(pair: list[dict[str, Any]]) -> None:
    """Seven clips in batches of two do not divide by two."""
    expected = probe.predict_seven(ALONE)
    assert len(expected) == 7
    assert np.array(pair[0]["predictions"]) == pytest.approx(
        np.array(expected), rel=1e-5
    )  # this process has more threads
    assert pair[1]["predictions"] == pair[0]["predictions"]


def test_a_clip_predicted_twice_is_an_error(pair: list[dict[str, Any]]) -> None:
    for rank in pair:
        assert rank["twice"] == "row 0: expected from one process, found from 3"


def test_more_processes_than_clips_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"each of 9 processes in every batch, found a batch of 7 \(23 training"):
        probe.run_training(probe.MODEL, {}, tmp_path / "c", DistributedContext(0, 9, torch.device("cpu")))


def test_more_micro_batches_than_clips_in_a_batch_are_refused(tmp_path: Path) -> None:
    message = r"a clip for each of 4 micro-batches of each of 2 processes .* found a batch of 7.*or lower train\.acc"
    with pytest.raises(SonolexError, match=message):
        probe.run_training(
            probe.MODEL, {"accumulate": 4}, tmp_path / "c", DistributedContext(0, 2, torch.device("cpu"))
        )


def test_a_process_whose_torchrun_is_gone_stops() -> None:
    with pytest.raises(SonolexError, match=r"expected torchrun \(process 1\d+1\) to be running, found it gone"):
        DistributedContext(0, 2, torch.device("cpu"), launcher=199999991).require_launcher()
    DistributedContext(0, 2, torch.device("cpu"), launcher=os.getppid()).require_launcher()


def test_gpus_add_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        with init_distributed() as context:
            assert context.device.type == "cuda"
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(SonolexError, match=r"a GPU for each process on this machine, found 1; lower launch\."),
        init_distributed(),
    ):
        pass


class Loss(torch.nn.Module):
    """The loss of a batch as a module, so that its weights can be replaced by others."""

    def __init__(self, model: Network, params: TrainParams, batch: Batch, targets: torch.Tensor, axis: int) -> None:
        super().__init__()
        self.model, self.params, self.batch, self.targets, self.axis = model, params, batch, targets, axis

    def forward(self) -> torch.Tensor:
        scale = PowerScale({"log_floor": -16.0}, 0.5) if self.axis == 1 else None  # type: ignore[typeddict-item]
        task = Classification(self.params, loss_of("one"), self.axis, scale)
        return task.loss(self.model, task.forward(self.model), self.batch, self.targets)[0]


TOKENS = network("tokens", input__embedding="random", input__embedding_width=6)


@pytest.mark.parametrize(
    ("section", "masked"),
    [(probe.MODEL | {"stem": probe.PATCHES}, True), (probe.MODEL, False), (TOKENS, True)],
    ids=["patches", "conv", "tokens"],
)
def test_a_batch_on_a_gpu_meets_nothing_on_the_cpu(section: dict[str, Any], masked: bool) -> None:
    """On pretended GPU tensors, which refuse operations across devices as real ones do. No kernel runs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = PLAIN | {"time_shift": 1.0, "time_stretch": 0.1, "mixup_probability": 0.7, "token_noise": 0.3}
    options |= {"frame_masks": {"count": 1, "width": 3}, "band_masks": {"count": 1, "width": 3}}
    settings = TrainParams.model_validate(SETTINGS | {"augmentation": options})
    tokens = section["input"]["kind"] == "tokens"
    metadata = {"vocabulary_size": 9, "bands": [[0, 6]]} if tokens else {"n_mels": 6}
    model = build(section, metadata, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = torch.zeros(4, 1, 30, dtype=torch.uint16) if tokens else torch.zeros(4, 30, 6, dtype=torch.float16)
        mask = torch.ones(4, 30, dtype=torch.bool) if masked else None
        normalisation = None if tokens else {"kind": "clip", "std_scale": 1.0, "mean": 0.0, "std": 1.0}
        batch = StoredBatch(inputs, mask, torch.arange(4), {}, normalisation).to(torch.device("cuda"))
        loss = Loss(model, settings, batch, torch.zeros(4, 3, device="cuda"), 2 if tokens else 1)
        state = {name: torch.empty_like(value, device="cuda") for name, value in loss.state_dict().items()}
        state |= {name: torch.empty_like(value, device="cuda") for name, value in loss.named_buffers()}
        assert torch.func.functional_call(loss, state, ()).device.type == "cuda"


def test_the_setting_turns_a_stage_into_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["stages/train.py", "clips", "--vocabulary", "v"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch.start_processes("stages.train", 1)
    assert not commands
    launch.start_processes("stages.train", 2)
    assert commands == [[*TORCHRUN, "-m", "stages.train", "clips", "--vocabulary", "v"]]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.start_processes("stages.train", 2)
    assert len(commands) == 1
