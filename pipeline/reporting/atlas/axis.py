"""Wording and ticks of the axis along a frame in the atlas: bands over Hz, or dimensions of hidden states."""

from typing import NamedTuple

import numpy as np

from pipeline.artifacts.spectrogram import HIDDEN_STATE, FrontEndMetadata
from pipeline.spectrogram.band_scale import band_positions, tick_labels
from pipeline.spectrogram.log_mel import count_bands

_TICKS = 6  # of an axis of dimensions, at most


class Axis(NamedTuple):
    """What the page says of the values of a frame."""

    pattern: str  # what a token is drawn as
    patch: str  # the same, of several frames
    over: str
    upwards: str
    large: str  # what a bright cell is
    before: str  # of a place on the axis, and behind it
    after: str
    unit: str  # of values and of distances, with a space before it
    places: list[int]  # of each value of a frame: Hz, or the number of its dimension
    ticks: list[tuple[float, str]]  # place along a frame and label


def axis_of(metadata: FrontEndMetadata) -> Axis:
    """Return the axis of a front end's frames."""
    if metadata["units"] == HIDDEN_STATE:
        count = metadata["n_mels"]
        step = -(-count // _TICKS)
        return Axis(
            pattern="hidden state", patch="hidden states", over="its dimensions", upwards="dimensions upwards",
            large="large", before="dimension ", after="", unit="", places=list(range(count)),
            ticks=[(float(place), str(place)) for place in range(0, count, step)],
        )  # fmt: skip
    grid = np.arange(1.0, metadata["sample_rate"] / 2, 5.0)
    hertz = np.interp(range(count_bands(metadata)), band_positions(metadata, grid.tolist()), grid)
    return Axis(
        pattern="spectrum", patch="log-mel spectrogram", over="Hz", upwards="frequency upwards", large="loud",
        before="", after=" Hz", unit=" dB", places=[round(value) for value in hertz],
        ticks=[(round(place, 2), label) for place, label in tick_labels(metadata).items()],
    )  # fmt: skip
