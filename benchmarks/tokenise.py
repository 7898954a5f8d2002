"""Frames to words: `pipeline/vocabulary/assignment.py` against FAISS's flat search and a bare matrix product.

    python -m benchmarks.tokenise --frames 500000

The same matrix, the same threads. The bare product is NumPy's, of all frames with all codes at once, without looking for
the nearest; FAISS searches its IndexFlatL2. `of FAISS` and `of GEMM` are Sonolex's rate over theirs.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measuring import interleave, report, seconds_of

GEMM_BLOCK = 1 << 25  # scores that the bare product may hold at once: 128 MiB


def run(frames: int, sizes: list[int], features: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every size and return the rows of the table."""
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    from pipeline.vocabulary.assignment import nearest_codes

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((frames, features), dtype=np.float32)
    rows = []
    with threadpool_limits(threads):
        for size in sizes:
            codes = rng.standard_normal((size, features), dtype=np.float32)
            index = faiss.IndexFlatL2(features)
            index.add(codes)
            block = max(1, GEMM_BLOCK // size)
            scores = np.empty((block, size), np.float32)

            def gemm(codes: np.ndarray = codes, scores: np.ndarray = scores, block: int = block) -> None:
                for start in range(0, frames, block):
                    part = z[start : start + block]
                    np.matmul(part, codes.T, out=scores[: len(part)])

            found: dict[str, np.ndarray] = {}

            def ours(codes: np.ndarray = codes, found: dict[str, np.ndarray] = found) -> None:
                found["ours"] = nearest_codes(z, codes[None], [[0, features]])[0]

            def theirs(index: Any = index, found: dict[str, np.ndarray] = found) -> None:
                found["faiss"] = index.search(z, 1)[1][:, 0]

            works: dict[str, Callable[[], object]] = {"sonolex": ours, "faiss": theirs, "gemm": gemm}
            contenders = {name: partial(_rate, frames, work) for name, work in works.items()}
            rates = interleave(contenders, repeats)
            best = {name: max(values) for name, values in rates.items()}
            rows.append(
                {
                    "words": size,
                    "sonolex, M frames/s": best["sonolex"],
                    "FAISS": best["faiss"],
                    "GEMM": best["gemm"],
                    "of FAISS": round(best["sonolex"] / best["faiss"], 2),
                    "of GEMM": round(best["sonolex"] / best["gemm"], 2),
                    "differ": f"{int((found['ours'] != found['faiss']).sum())} of {frames}",
                }
            )
    return rows


def _rate(frames: int, work: Callable[[], object]) -> float:
    """Return million frames a second."""
    return frames / seconds_of(work) / 1e6


def main(
    frames: int = 500_000,
    sizes: Annotated[list[int], typer.Option(help="words")] = [256, 1024, 4096],  # noqa: B006 - typer's way
    features: int = 128,
    threads: int = 0,
    repeats: int = 3,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure how fast frames become words."""
    threads = threads or len(os.sched_getaffinity(0))
    rows = run(frames, sizes, features, threads, repeats)
    title = f"{frames} x {features} frames to words, best of {repeats}, {threads} threads"
    report("tokenise", title, rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
