"""Gradient flow: mean and largest absolute gradient of every layer, in a few epochs of a run.

A layer without gradients does not learn, one with far larger ones than the others makes training unstable (plots by layer as
in Glorot and Bengio, 2010). The gradients are those of the training steps, of the whole batch and before clipping, so
measuring does not change the run. A layer is a weight of two or more axes: matrices, kernels, embedding tables.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from pipeline.artifacts.files import replacing

NUM_EPOCHS = 5  # that are measured: the first, the last, and some between

TABLE, FIGURE = "gradients.csv", "gradients.png"


class LayerGradient(TypedDict):
    """Gradient of one layer in one epoch: a row of the table."""

    epoch: int  # from 1
    layer: str
    mean: float  # of the absolute gradient, over elements and steps
    largest: float


class GradientFlow:
    """Recorder of a model's gradients after backward passes, in the measured epochs."""

    def __init__(self, model: nn.Module, num_epochs: int) -> None:
        self.epochs = {round(i * (num_epochs - 1) / (NUM_EPOCHS - 1)) for i in range(NUM_EPOCHS)}  # from 0
        self._layers = {
            name.removesuffix(".weight"): weight
            for name, weight in model.named_parameters()
            if weight.ndim > 1 and weight.requires_grad
        }
        self._steps: list[Tensor] = []  # each (2, layer): sums and largest values

    @torch.no_grad()
    def look(self) -> None:
        """Record the gradients of a step, unless some are not finite: such a step is skipped."""
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._layers.values()]
        sums, largest = (torch.stack(torch._foreach_norm(gradients, order)) for order in (1, torch.inf))
        found = torch.stack([sums, largest])
        if found.isfinite().all():
            self._steps.append(found)

    def rows(self, epoch: int) -> list[LayerGradient]:
        """Return the rows of an epoch (from 1), in the order of the layers, and clear its steps."""
        if not self._steps:
            return []
        steps = torch.stack(self._steps).double().cpu()
        self._steps.clear()
        means, largest = steps[:, 0].mean(0).tolist(), steps[:, 1].amax(0).tolist()
        return [
            LayerGradient(epoch=epoch, layer=layer, mean=mean / weight.numel(), largest=most)
            for (layer, weight), mean, most in zip(self._layers.items(), means, largest, strict=True)
        ]


def write_gradients(folder: Path, rows: Sequence[LayerGradient]) -> None:
    """Write the table and its figure into a folder."""
    with replacing(folder / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", "layer", "mean", "largest"])
        writer.writerows([row["epoch"], row["layer"], f"{row['mean']:.6g}", f"{row['largest']:.6g}"] for row in rows)
    _draw(folder / FIGURE, rows)


def _draw(path: Path, rows: Sequence[LayerGradient]) -> None:
    """Draw a line per epoch over the layers, from input to output; a gap is a layer without gradient."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    epochs = sorted({row["epoch"] for row in rows})
    figure = Figure(figsize=(max(6.0, 0.28 * len(layers) + 2), 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, values, title in (
        (upper, {(row["epoch"], row["layer"]): row["mean"] for row in rows}, "mean over elements and steps"),
        (lower, {(row["epoch"], row["layer"]): row["largest"] for row in rows}, "largest of all elements and steps"),
    ):
        for number, epoch in enumerate(epochs):
            heights = [values.get((epoch, layer), 0.0) or float("nan") for layer in layers]
            colour = colormaps["viridis"](0.9 * number / max(len(epochs) - 1, 1))
            axes.plot(heights, marker="o", markersize=3, linewidth=1.2, color=colour, label=f"epoch {epoch}")
        axes.set(yscale="log", ylabel="absolute gradient")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
    lower.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    upper.legend(fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
