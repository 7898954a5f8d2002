"""Frequency axis of mel bands: positions and labels of ticks in plots of log-mel frames."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.spectrogram import HIDDEN_STATE, SAMPLES, FrontEndMetadata
from pipeline.spectrogram.log_mel import count_bands
from pipeline.spectrogram.mel import to_mel

TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)  # Hz, ticks of an axis of mel bands

_TABLE = 1 << 14  # frequencies


def band_positions(metadata: FrontEndMetadata, hertz: Sequence[float]) -> np.ndarray:
    """Return the positions of frequencies on the axis of bands (frequency,); the centre of band k is at k.

    The centres of the bands are evenly spaced on the mel scale, the first one step above f_min. `metadata` is the front
    end's.
    """
    if metadata["units"] == SAMPLES:  # bins of a spectrum
        return np.array(hertz, dtype=np.float64) * metadata["n_fft"] / metadata["sample_rate"]
    scale = metadata["params"].get("mel_scale", "htk")
    low, high, *wanted = to_mel(np.array([metadata["f_min"], metadata["f_max"], *hertz], dtype=np.float64), scale)
    return np.asarray((np.array(wanted) - low) / (high - low) * (count_bands(metadata) + 1) - 1)


def band_centres(metadata: FrontEndMetadata) -> np.ndarray:
    """Return the centres of the bands in Hz, (band,), from a table of `band_positions` that is right to a thousandth."""
    hertz = np.linspace(metadata["f_min"], metadata["f_max"], _TABLE)
    return np.interp(np.arange(count_bands(metadata)), band_positions(metadata, hertz.tolist()), hertz)


def tick_labels(metadata: FrontEndMetadata) -> dict[float, str]:
    """Return position -> label ("500", "2k") of the ticks within the range of the bands; none where frames are no bands."""
    num_bands, ticks = count_bands(metadata), dict[float, str]()
    if metadata["units"] == HIDDEN_STATE:
        return ticks
    for hertz, place in zip(TICKS, band_positions(metadata, TICKS), strict=True):
        if -0.5 <= place <= num_bands - 0.5 and place >= max(ticks, default=-np.inf) + num_bands / 14:
            ticks[float(place)] = f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
    return ticks
