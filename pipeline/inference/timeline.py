"""Timelines: labels along a sound, from the predictions of its windows, as regions and as a label track of Audacity.

A label track is text: start, end (seconds) and label in a line, separated by tabs. Audacity reads it by File > Import >
Labels; Sonic Visualiser and ELAN read it too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.files import replacing
from pipeline.inference.prediction import Prediction
from pipeline.inference.windows import segments


class Region(NamedTuple):
    """A part of a sound in which one label is decided for throughout."""

    start: float  # seconds
    end: float  # seconds
    label: str


def regions(windows: Sequence[Prediction]) -> list[Region]:
    """Return the regions of every label, by start: where windows overlap, each stands for the time nearest its middle."""
    found: list[Region] = []
    open_regions: dict[str, Region] = {}
    for window, (start, end) in zip(windows, segments([(w.start, w.end) for w in windows]), strict=True):
        current = {}
        for label in window.labels:
            before = open_regions.pop(label, None)
            touches = before is not None and before.end >= start - 1e-6
            if before is not None and not touches:
                found.append(before)
            current[label] = Region(before.start if before is not None and touches else start, end, label)
        found += open_regions.values()
        open_regions = current
    return sorted([*found, *open_regions.values()])


def write_label_track(path: Path, windows: Sequence[Prediction]) -> None:
    """Write the regions of a sound as a label track of Audacity."""
    lines = [f"{region.start:.6f}\t{region.end:.6f}\t{region.label}\n" for region in regions(windows)]
    with replacing(path) as partial:
        partial.write_text("".join(lines), encoding="utf-8")
