"""Picture of embeddings: their first two principal components, coloured by label."""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.artifacts.files import replacing
from pipeline.errors import SonolexError
from pipeline.inference.embedding_tables import Embeddings, standardised

MOST_LABELS = 20  # with a colour of their own, the most frequent ones; the others are grey

_MARKERS = ("o", "s")  # one after the other through the ten colours
_INCHES, _DPI = (9.0, 6.5), 130


def write_picture(path: Path, embeddings: Embeddings) -> None:
    """Write a PNG. Raises SonolexError unless there are two embeddings."""
    if len(embeddings.files) < 2:
        raise SonolexError(f"{path}: expected at least 2 embeddings to draw, found {len(embeddings.files)}")
    points, shares = principal_components(standardised(embeddings.vectors, by=embeddings.vectors))
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    labels = np.array(embeddings.labels)
    named = [label for label, _ in Counter(embeddings.labels).most_common(MOST_LABELS)]
    others = ~np.isin(labels, named)
    if others.any():
        name = f"{len(set(labels[others].tolist()))} others"
        axes.scatter(points[others, 0], points[others, 1], s=14, color="0.75", label=name, linewidths=0)
    for number, label in enumerate(named):
        colour, marker = colormaps["tab10"](number % 10), _MARKERS[number // 10 % len(_MARKERS)]
        own = points[labels == label]
        name = label or "(no label)"
        axes.scatter(own[:, 0], own[:, 1], s=18, color=colour, marker=marker, label=name, alpha=0.8)
    axes.set(xlabel=f"component 1 ({shares[0]:.0%} of variance)", ylabel=f"component 2 ({shares[1]:.0%})")
    axes.set_title(f"{len(labels)} embeddings, {embeddings.card['layer']}")
    if len(set(embeddings.labels)) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI)


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centred rows (row, dim) in their first two principal components (row, 2), and the variance share of each."""
    _, sizes, axes = np.linalg.svd(vectors, full_matrices=False)
    variances = np.pad(np.square(sizes), (0, 2))
    points = np.pad(vectors @ axes[:2].T, ((0, 0), (0, max(0, 2 - len(axes)))))
    return points, variances[:2] / max(float(variances.sum()), 1e-12)
