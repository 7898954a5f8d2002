"""Benchmark of training steps: Sonolex's patch transformer, Hugging Face's ASTModel and timm's ViT, of the same shape.

    python -m benchmarks.training --repeats 5 --threads 2

Width 192, depth 12, 3 heads, 16 x 16 patches over 512 frames of 128 bands, 16 clips per step, float32, 50 classes. All
contenders run the forward pass, cross entropy, the backward pass, the norm of the gradients and torch's fused AdamW, each in
a separate process, alternating. `products` is the lower bound: the matrix products of a step, and torch's fused attention.

Two more tables: the fraction of a training loop's time that is spent waiting for clips, and, where torch finds a GPU, the
fraction of its matrix rate that base384 reaches. FLOPs are two per multiply-add of the linear layers and of the two products
of attention, times three for forward and backward; recomputation does not count.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.contenders import BASE, CONTENDERS, TINY, Shape, make_learner
from benchmarks.frames import write_spectrogram
from benchmarks.measuring import interleave, report, seconds_of
from pipeline.artifacts.model import Normalisation
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.training.batches import Batches
from pipeline.training.inputs import FrameInputs
from pipeline.training.loop import train
from pipeline.training.validation import Examples

Cost = tuple[float, float]  # seconds of wall time and of CPU time


class Contender:
    """A contender in a separate process, with its own allocator and caches."""

    def __init__(self, name: str, shape: Shape, threads: int) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, shape, threads, other), daemon=True)
        self._process.start()
        other.close()
        self.step()  # the first step allocates memory and selects kernels

    def step(self) -> Cost:
        """Take a step and return its cost."""
        self._connection.send("step")
        cost: Cost = self._connection.recv()
        return cost

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(name: str, shape: Shape, threads: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    step = CONTENDERS[name](shape)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        before = time.process_time()
        seconds = seconds_of(step)
        connection.send((seconds, time.process_time() - before))


def run(shape: Shape, names: list[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Measure steps of every contender and return the rows of the table, ratios to the first."""
    contenders = {name: Contender(name, shape, threads) for name in names}
    costs = interleave({name: contender.step for name, contender in contenders.items()}, repeats)
    for contender in contenders.values():
        contender.close()
    clock, processor = ({name: [cost[i] for cost in values] for name, values in costs.items()} for i in (0, 1))
    return [
        {
            "what": name,
            "stride": shape.stride,
            "clips/s": shape.batch / statistics.median(clock[name]),
            "processor ms per clip": 1000 * statistics.median(processor[name]) / shape.batch,
            f"{names[0]} / this, clock": _ratio(clock[name], clock[names[0]]),
            "processor": _ratio(processor[name], processor[names[0]]),
        }
        for name in names
    ]


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Return the median ratio over rounds, in which other load affects both alike."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def waiting(shape: Shape, clips: int, threads: int) -> list[dict[str, Any]]:
    """Train two epochs on stored frames, from memory and from the disk, and return the fraction of time spent on input."""
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        write_spectrogram(Path(temporary) / "s", clips, shape.frames, "uint8")
        inputs = FrameInputs(open_spectrogram(Path(temporary) / "s"))
        ids = [f"clip{number:06d}" for number in range(clips)]
        normalisation = Normalisation(kind="corpus", std_scale=2.0, mean=-4.0, std=4.0)
        targets = torch.from_numpy(np.eye(shape.classes, dtype=np.float32)[np.arange(clips) % shape.classes])
        for kept in (True, False):
            batches = Batches(inputs, ids, normalisation)
            if not kept:
                batches._cache = None
            learner = make_learner(shape, epochs=2)
            trained = train(
                learner.model, learner.params, learner.task, Examples(batches, targets, ids), None,
                seed=0, on_epoch=lambda row, timing: None, checkpoint=Path(temporary) / "c",
            )  # fmt: skip
            row = trained.timing.epochs[-1]
            where = "memory" if kept else "disk"
            rows.append({"clips from": where, "clips/s": row["clips_per_second"], "input": row["input_fraction"]})
    return rows


def utilisation(shape: Shape, device: torch.device, repeats: int, *, fast: bool = True) -> dict[str, Any]:
    """Train with bfloat16, compiled and fused, and return the row with the fraction of the device's matrix rate."""
    learner = make_learner(shape, device=device, precision="bfloat16", compile=fast)
    step = partial(_synchronised, device, learner.one_step)
    for _ in range(3):
        step()
    size = 8192 if fast else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = partial(_synchronised, device, lambda: [left @ right for _ in range(10)])
    product()
    seconds = interleave({"step": partial(seconds_of, step), "product": partial(seconds_of, product)}, repeats)
    step_seconds, product_seconds = (statistics.median(seconds[name]) for name in ("step", "product"))
    rate, best = shape.flops() / step_seconds / 1e12, 10 * 2 * size**3 / product_seconds / 1e12
    return {
        "what": f"width {shape.width}, stride {shape.stride}, {shape.frames} frames, batch {shape.batch}",
        "clips/s": shape.batch / step_seconds,
        "TFLOP/s": rate,
        "bf16 product, TFLOP/s": best,
        "of it": rate / best,
    }


def _synchronised(device: torch.device, work: Callable[[], object]) -> None:
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(
    repeats: int = 5,
    threads: int = 0,
    strides: Annotated[list[int], typer.Option(help="of patches, frames and bands")] = [16, 10],  # noqa: B006 - typer's way
    clips: Annotated[int, typer.Option(help="of the epoch whose input is timed")] = 64,
    gpu_batch: Annotated[int, typer.Option(help="clips per step on a GPU")] = 64,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure training steps."""
    threads = threads or len(os.sched_getaffinity(0))
    rows = [row for stride in strides for row in run(TINY._replace(stride=stride), list(CONTENDERS), repeats, threads)]
    title = f"steps of 16 clips, {threads} threads, medians of {repeats}"
    report("training", title, rows, json_path=json)
    report("input", "fraction of the time that training waits for clips", waiting(TINY, clips, threads))
    if torch.cuda.is_available():
        shapes = [BASE._replace(batch=gpu_batch, stride=stride) for stride in strides]
        card = [utilisation(shape, torch.device("cuda"), repeats) for shape in shapes]
        report("gpu", torch.cuda.get_device_name(), card)


if __name__ == "__main__":
    typer.run(main)
