"""Common functions of the benchmarks: description of the machine, interleaved timing, tables, results as JSON."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

T = TypeVar("T")


def machine() -> dict[str, Any]:
    """Return a description of the machine: processor, cores, versions, and load."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy", "zarr", "tensorstore", "faiss-cpu")},
    }


def interleave(contenders: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Measure each contender once per round, so that other load affects all alike. Returns name -> values."""
    values: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, measure in contenders.items():
            values[name].append(measure())
    return values


def seconds_of(work: Callable[[], object]) -> float:
    """Return the duration of `work` in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the largest and the median of several rates, ignoring NaN."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return {"best": float("nan"), "median": float("nan")}
    return {"best": float(np.max(known)), "median": float(np.median(known))}


def report(name: str, title: str, rows: Sequence[Mapping[str, Any]], *, json_path: Path | None = None) -> None:
    """Print rows as a table and, when asked, write them with the machine as JSON. Only the table is rounded."""
    table = Table(title=title)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(_spell(row.get(column, "")) for column in columns))
    Console(width=None if os.isatty(1) else 160).print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": name, "title": title, "machine": machine(), "rows": list(rows)}
        json_path.write_text(json.dumps(document, indent=1) + "\n")


def _spell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
