"""Multilayer perceptrons in NumPy, for tokens of trained encoders: affine layers with ReLU between them.

Conventions: rows (token, unit) float32. A perceptron is one or more layers; its arrays are stored with a vocabulary, as
`<name>_weight_<number>` and `<name>_bias_<number>`.
"""

from collections.abc import Mapping, Sequence
from itertools import count, pairwise, takewhile
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.vocabulary import NamedArray

_ROWS_PER_BLOCK = 1 << 14  # bounds the memory of hidden layers


class Layer(NamedTuple):
    """An affine map."""

    weight: np.ndarray  # (input, output) float32
    bias: np.ndarray  # (output,) float32


def apply_layers(layers: Sequence[Layer], rows: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the output of a perceptron for each row; no product takes rows of two clips, which end at `ends`."""
    found = np.empty((len(rows), len(layers[-1].bias)), dtype=np.float32)
    for first, last in pairwise([0, *(ends or [len(rows)])]):
        for start in range(first, last, _ROWS_PER_BLOCK):
            stop = min(start + _ROWS_PER_BLOCK, last)
            found[start:stop] = _apply(layers, rows[start:stop])
    return found


def _apply(layers: Sequence[Layer], values: np.ndarray) -> np.ndarray:
    *hidden, last = layers
    for weight, bias in hidden:
        values = np.maximum(values @ weight + bias, 0)
    output: np.ndarray = values @ last.weight + last.bias
    return output


def layer_arrays(name: str, layers: Sequence[Layer]) -> dict[str, NamedArray]:
    """Return the arrays of a perceptron, as they are stored."""
    arrays = {}
    for number, (weight, bias) in enumerate(layers):
        axes = (f"{name}_{number}", f"{name}_{number + 1}")
        arrays[_weight(name, number)] = NamedArray(axes, weight)
        arrays[_bias(name, number)] = NamedArray(axes[1:], bias)
    return arrays


def stored_layers(name: str, arrays: Mapping[str, NamedArray]) -> list[Layer]:
    """Return the perceptron of this name among stored arrays."""
    numbers = takewhile(lambda number: _weight(name, number) in arrays, count())
    return [Layer(arrays[_weight(name, number)].values, arrays[_bias(name, number)].values) for number in numbers]


def _weight(name: str, number: int) -> str:
    return f"{name}_weight_{number}"


def _bias(name: str, number: int) -> str:
    return f"{name}_bias_{number}"
