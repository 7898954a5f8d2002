"""`sonolex gc`: bound the memo store, removing damaged, old and least recently used entries, and leftovers of killed runs.

The memo store is that of shards, and that of frames of background noise. Removed entries can be recomputed by a later run.
Artifacts and DVC's cache keep their own links.
"""

import re
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.errors import ParamsError
from pipeline.execution.housekeeping import plan_removal, remove
from pipeline.paths import shared_path, workspaces_folder
from pipeline.training.augmentation.noise_folder import CACHE

_STATE = Path(".sonolex")
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Return a size such as `500M` or `20G` in bytes; only 0 needs no unit."""
    if text.strip() == "0":
        return 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])B?", text.strip().upper())
    if not match:
        raise ParamsError(f"--max-size: expected a number with a unit, K, M, G or T, such as 20G, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def run(
    root: Path, *, max_size: str | None, max_days: float | None, verify: bool, dry_run: bool, console: Console
) -> None:
    """Clean up the memo at `root` and the project's folder of state, and print a summary."""
    limit = parse_size(max_size) if max_size is not None else None
    removal = plan_removal(
        root,
        shared_path(CACHE),
        max_bytes=limit,
        max_days=max_days,
        thorough=verify,
        state=shared_path(_STATE),
        workspaces=workspaces_folder(),
    )
    if not dry_run:
        removal = remove(removal)
    table = Table(title=f"memo store {root}")
    for column in ("stage", "entries removed", "bytes"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    counts = Counter(kept.stage for kept in removal.entries)
    for stage, count in sorted(counts.items()):
        size = sum(kept.entry.size for kept in removal.entries if kept.stage == stage)
        table.add_row(stage, str(count), f"{size:,}")
    console.print(table if counts else f"memo store {root}: nothing to remove")
    for path in removal.damaged:
        console.print(f"damaged: {path}")
    verb = "would free" if dry_run else "freed"
    console.print(
        f"{verb} {removal.freed_bytes:,} bytes (what artifacts link to as well is not counted); "
        f"{len(removal.left_over)} left-overs of killed runs; {removal.kept_bytes:,} bytes stay"
    )
