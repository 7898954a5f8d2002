"""Picture of a sound along time: log-mel frames, tokens, and the probabilities of the likeliest classes.

The sound is read forward a second time, and its frames are averaged over columns as they come, so that hours take no more
memory than seconds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from pipeline.artifacts.files import replacing
from pipeline.inference.classifier import Classifier
from pipeline.inference.prediction import Prediction
from pipeline.inference.windows import Windowing, WindowReader, segments
from pipeline.spectrogram.band_scale import tick_labels
from pipeline.spectrogram.decoding import prepare_waveform
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.storing import restore

MOST_CLASSES = 12  # rows of scores

_COLUMNS = 1500  # of the picture, at least, in a sound that has as many frames
_SECONDS_AT_ONCE = 10.0  # of sound in memory
_INCHES = (13.0, 7.5)
_DPI = 110


def write_picture(path: Path, classifier: Classifier, source: Path, windows: Sequence[Prediction]) -> None:
    """Write a PNG of a file that was predicted in windows. Raises BadClip where it can no longer be read."""
    seconds = windows[-1].end
    frames, tokens = _columns(classifier, source, seconds)
    names = ["frames", *(["tokens"] if tokens is not None else []), "scores"]
    heights = {"frames": 2.2, "tokens": 1.2, "scores": 2.0}
    figure = Figure(figsize=_INCHES, layout="constrained")
    grid = figure.subplots(len(names), 1, sharex=True, squeeze=False, height_ratios=[heights[name] for name in names])
    axes = dict(zip(names, grid[:, 0], strict=True))
    _draw_frames(axes["frames"], frames, classifier, seconds)
    if tokens is not None:
        _draw_tokens(axes["tokens"], tokens, seconds)
    mesh = _draw_scores(axes["scores"], windows)
    figure.colorbar(
        mesh, ax=list(grid[:, 0]), label="probability of classes", pad=0.01
    )  # of all: they keep one time axis
    grid[0, 0].set_title(str(source))
    grid[-1, 0].set(xlabel="seconds", xlim=(0, seconds))
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def _columns(classifier: Classifier, source: Path, seconds: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean frames (column, mel), and of models that read tokens one token a column (codebook, column)."""
    windowing, reading = Windowing(_SECONDS_AT_ONCE, _SECONDS_AT_ONCE), classifier.reading
    reader = WindowReader(source, windowing, mix=reading["mix"], allow_silence=reading["allow_silence"])
    frames: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    digests = list(classifier.vocabularies)
    read = 0.0  # seconds
    for _ in range(reader.num_windows):
        (window,) = reader.take(1)
        samples = window.samples[
            round((read - window.start) * reader.rate) :
        ]  # the last window overlaps the one before
        if len(samples) < reader.rate // 20 and frames:
            break
        stored = _stored(classifier, samples, reader.rate, str(source))
        count = max(1, min(len(stored), round(_COLUMNS * (window.end - read) / seconds)))
        values = log_mel_part(restore(stored, classifier.metadata), classifier.metadata)
        frames += [part.mean(axis=0) for part in np.array_split(values, count)]
        if digests:
            ids = classifier.tokens([stored], digests[0])[0]
            middles = (np.arange(count) + 0.5) * ids.shape[1] / count
            tokens.append(ids[:, middles.astype(int)])
        read = window.end
    reader.close()
    return np.stack(frames), np.concatenate(tokens, axis=1) if tokens else None


def _stored(classifier: Classifier, samples: np.ndarray, rate: int, where: str) -> np.ndarray:
    waveform = prepare_waveform(
        samples, rate, sample_rate=classifier.sample_rate, min_samples=1, where=where, allow_silence=True
    )
    missing = max(0, classifier.front_end.min_samples - len(waveform))
    return classifier.frames(np.pad(waveform, (0, missing)), where)


def _draw_frames(axes: Axes, frames: np.ndarray, classifier: Classifier, seconds: float) -> None:
    low, high = np.percentile(frames, [1, 99.8])
    extent = (0.0, seconds, -0.5, frames.shape[1] - 0.5)
    axes.imshow(
        frames.T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=max(high, low + 1e-6), cmap="magma"
    )
    ticks = tick_labels(classifier.metadata)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylabel("frequency (Hz)")


def _draw_tokens(axes: Axes, tokens: np.ndarray, seconds: float) -> None:
    """Draw the tokens of every codebook as a row of colours, which tell tokens apart and mean nothing else."""
    colours = (tokens.astype(np.int64) * 2654435761 % 997) / 997  # neighbouring ids differ
    extent = (0.0, seconds, len(tokens) - 0.5, -0.5)
    axes.imshow(colours, aspect="auto", interpolation="nearest", extent=extent, cmap="turbo", vmin=0, vmax=1)
    axes.set_yticks(range(len(tokens)) if len(tokens) > 1 else [])
    axes.set_ylabel("tokens, by codebook" if len(tokens) > 1 else "tokens")


def _draw_scores(axes: Axes, windows: Sequence[Prediction]) -> QuadMesh:
    """Draw the classes that reach the highest probabilities, the likeliest on top."""
    scores = np.stack([window.scores for window in windows])
    rows = np.argsort(-scores.max(axis=0), kind="stable")[:MOST_CLASSES]
    parts = segments([(window.start, window.end) for window in windows])
    edges = [start for start, _ in parts] + [parts[-1][1]]
    mesh = axes.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, scores[:, rows].T, cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(rows)), [windows[0].classes[row] for row in rows.tolist()])
    axes.invert_yaxis()
    axes.set_ylabel("class")
    return mesh
