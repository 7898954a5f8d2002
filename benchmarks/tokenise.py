"""Benchmark of tokenisation: `pipeline/vocabulary/assignment.py`, FAISS's flat search and a bare matrix product.

    python -m benchmarks.tokenise --frames 500000

All use the same matrix and threads. The bare product is NumPy's, of all frames with all codes, without the search for the
nearest; FAISS searches an IndexFlatL2. `of FAISS` and `of GEMM` are Sonolex's rate divided by theirs. A second table has the
whole of `assign`, normalisation included, for three kinds of vocabulary, compared with the products of their codebooks,
without and with the search for the largest score; ratios are medians over rounds.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from benchmarks.measuring import interleave, report
from pipeline.artifacts.vocabulary import FeatureSpace, StoredMetadata, Vocabulary
from pipeline.execution.threads import num_threads

Clock = Callable[[], float]

CLIP_FRAMES = 1000
KINDS = (  # name, codebooks, tokens in each, groups of features
    ("kmeans, 4,096 tokens", 1, 4096, 1),
    ("residual, 4 x 256 tokens", 4, 256, 1),
    ("bands, 8 x 256 tokens", 8, 256, 8),
)
SMALL_GEMM_BLOCK = 1 << 19  # scores that fit into the processor's cache
GEMM_BLOCK = 1 << 25  # scores that the bare product may hold at once: 128 MiB


def run(frames: int, sizes: list[int], features: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every size and return the rows of the table."""
    import faiss
    import torch

    from pipeline.vocabulary.nearest import nearest_codes

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((frames, features), dtype=np.float32)
    rows = []
    with num_threads(threads):
        for size in sizes:
            codes = rng.standard_normal((size, features), dtype=np.float32)
            index = faiss.IndexFlatL2(features)
            index.add(codes)

            def gemm(codes: np.ndarray = codes) -> None:
                _multiply(z, codes, GEMM_BLOCK)

            found: dict[str, np.ndarray] = {}

            def ours(codes: np.ndarray = codes, found: dict[str, np.ndarray] = found) -> None:
                found["ours"] = nearest_codes(z, codes)[0]

            def theirs(index: Any = index, found: dict[str, np.ndarray] = found) -> None:
                found["faiss"] = index.search(z, 1)[1][:, 0]

            works: dict[str, Callable[[], object]] = {"sonolex": ours, "faiss": theirs, "gemm": gemm}
            contenders = {name: partial(_rate, frames, work) for name, work in works.items()}
            rates = interleave(contenders, repeats)
            best = {name: max(values) for name, values in rates.items()}
            rows.append(
                {
                    "tokens": size,
                    "sonolex, M frames/s": best["sonolex"],
                    "FAISS": best["faiss"],
                    "GEMM": best["gemm"],
                    "of FAISS": best["sonolex"] / best["faiss"],
                    "of GEMM": best["sonolex"] / best["gemm"],
                    "differ": f"{int((found['ours'] != found['faiss']).sum())} of {frames}",
                }
            )
    return rows


def run_kinds(frames: int, features: int, threads: int, repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """Measure the whole of `assign`, from frames to tokens, for three vocabularies, and its arithmetic alone.

    The arithmetic is the products alone, and the products with NumPy's search for the largest score.
    """
    from pipeline.vocabulary.assignment import assign

    rng = np.random.default_rng(0)
    clips = list(rng.standard_normal((frames // CLIP_FRAMES, CLIP_FRAMES, features), dtype=np.float32))
    z = np.concatenate(clips)
    rows = []
    with num_threads(threads):
        for name, num_codebooks, size, groups in KINDS:
            vocabulary = _vocabulary(rng, num_codebooks, size, features, groups)

            def products(vocabulary: Vocabulary = vocabulary, block: int = GEMM_BLOCK, search: bool = False) -> None:
                for codes, (start, stop) in zip(vocabulary.codebooks, vocabulary.metadata["bands"], strict=True):
                    _multiply(z[:, start:stop], codes, block, search=search)

            def ours(vocabulary: Vocabulary = vocabulary) -> None:
                assign(vocabulary, clips)

            works: dict[str, Callable[[], object]] = {
                "ours": ours,
                "large": products,
                "small": partial(products, block=SMALL_GEMM_BLOCK),
                "search": partial(products, block=SMALL_GEMM_BLOCK, search=True),
            }
            rates = interleave({key: partial(_rate, len(z), work, clock) for key, work in works.items()}, repeats)
            bare = max(("large", "small"), key=lambda key: np.median(rates[key]))  # the faster one on this processor
            rows.append(
                {
                    "vocabulary": name,
                    "assign, M frames/s": max(rates["ours"]),
                    "products": max(rates[bare]),
                    "of the products": _median_ratio(rates["ours"], rates[bare]),
                    "of products and search": _median_ratio(rates["ours"], rates["search"]),
                }
            )
    return rows


def _vocabulary(rng: np.random.Generator, num_codebooks: int, size: int, features: int, groups: int) -> Vocabulary:
    """Return codebooks of noise over plain frames; with one group of features, all codebooks cover all features."""
    ones, width = np.ones(features, np.float32), features // groups
    none = np.empty(0, np.float32)
    space = FeatureSpace("standardise", 0, 1, groups, 0 * ones, ones, ones, none, none.reshape(0, 0))
    starts = [number * width if groups > 1 else 0 for number in range(num_codebooks)]
    codes = rng.standard_normal((num_codebooks, size, width), dtype=np.float32)
    bands = [[start, start + width] for start in starts]
    counts = np.zeros((num_codebooks, size), np.int64)
    metadata = cast(StoredMetadata, {"kind": "bands" if groups > 1 else "residual", "bands": bands})
    return Vocabulary(Path("noise.zarr"), space, codes, none, counts, metadata)


def _multiply(z: np.ndarray, codes: np.ndarray, num_scores: int, *, search: bool = False) -> None:
    """Multiply all frames with all codes, in blocks of `num_scores`, with or without the search for the largest score."""
    block = max(1, num_scores // len(codes))
    scores = np.empty((min(block, len(z)), len(codes)), np.float32)
    for start in range(0, len(z), block):
        part = z[start : start + block]
        np.matmul(part, codes.T, out=scores[: len(part)])
        if search:
            scores[: len(part)].argmax(axis=1)


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of our rate over theirs."""
    return float(np.median([one / other for one, other in zip(ours, theirs, strict=True)]))


def _rate(frames: int, work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Return million frames per second."""
    started = clock()
    work()
    return frames / (clock() - started) / 1e6


def main(
    frames: int = 500_000,
    sizes: Annotated[list[int], typer.Option(help="tokens")] = [256, 1024, 4096],  # noqa: B006 - typer's way
    features: int = 128,
    threads: int = 0,
    repeats: int = 3,
    processor_time: Annotated[bool, typer.Option(help="of the second table: not what else the machine does")] = False,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure how fast frames become tokens."""
    threads = threads or len(os.sched_getaffinity(0))
    title = f"{frames} x {features} frames to tokens, best of {repeats}, {threads} threads"
    if sizes:
        report("tokenise", title, run(frames, sizes, features, threads, repeats), json_path=json)
    clock = time.process_time if processor_time else time.perf_counter
    rows = run_kinds(frames, features, threads, repeats, clock)
    path = json.with_stem(f"{json.stem}_kinds") if json else None
    report("tokenise_kinds", f"{title}, all of assign()", rows, json_path=path)


if __name__ == "__main__":
    typer.run(main)
