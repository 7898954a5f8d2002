"""Layers of a network: the outputs of its modules by name, taken by forward hooks.

A layer is a module of the network, named by its place in it (`stem`, `encoder.blocks.3`, `encoder`), or `head`: the vector a
clip that the last classifier reads. Only modules that are called once a clip, and whose output has one axis along time, are
layers; which axis that is shows by two inputs of different lengths. Positions of one time step, or rows of a feature map,
are averaged, so every layer has one vector a time step.

Conventions: B batch, T frame, S time step, D width. Clips of a batch have the same length, so none is masked.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import SonolexError
from pipeline.models.network import Network

HEAD = "head"
_FRAMES = 256  # of the longer probe
_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")  # in a module's name
_BATCH = 2  # of probes: 2, so that what has no batch is seen by its first axis


@dataclass(frozen=True)
class Layer:
    """Axes of a layer's output, and the time that its time steps stand for."""

    dim: int
    time_axis: int | None  # of (B, time, D), (B, D, time), or (B, D, ., .); None: (B, D)
    num_class_tokens: int = 0  # before the positions of time steps
    num_rows: int = 1  # positions of a time step
    stride: int = 1  # frames from one time step to the next
    centre: float = 0.0  # frame that the first is centred on
    place: str = ""  # part of the network, stem or encoder, whose time steps it has; empty: its own

    def read(self, output: Tensor) -> Tensor:
        """Return an output as (B, S, D), or (B, D) where there is no time."""
        if self.time_axis is None:
            return output
        if output.ndim == 4:
            return output.mean(5 - self.time_axis).transpose(1, 2)
        positions = output.movedim(self.time_axis, 1)[:, self.num_class_tokens :]
        return positions.reshape(len(positions), -1, self.num_rows, self.dim).mean(2)

    def real_time_steps(self, network: Network, num_steps: int, num_frames: int) -> Tensor:
        """Return which of `num_steps` time steps (S,) lie within a clip: some stems pad it."""
        stem, encoder = network.stem, network.encoder
        if not self.place or stem.num_positions is None:
            middles = torch.arange(num_steps) * self.stride + self.centre
            return (middles < num_frames) | (torch.arange(num_steps) == 0)
        mask = torch.ones((1, num_frames), dtype=torch.bool)
        real = stem.real_time_steps(mask, stem.num_positions // stem.num_rows)
        return (encoder.real_time_steps(real) if self.place == "encoder" else real)[0]


class LayerOutputs:
    """Forward hooks that keep the outputs of modules, and for `head` what the last classifier reads."""

    def __init__(self, network: Network, names: Iterable[str]) -> None:
        self._network = network
        self._found = threading.local()
        self._hooks: list[RemovableHandle] = []
        modules = dict(network.named_modules())
        for name in names:
            if name == HEAD:
                last = [module for module in network.head.modules() if isinstance(module, nn.Linear)][-1]
                hook = last.register_forward_pre_hook(lambda _module, inputs: self._keep(HEAD, inputs[0]))
            else:
                hook = modules[name].register_forward_hook(partial(self._keep_output, name))
            self._hooks.append(hook)

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def of(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Return what each module put out for a batch, once for every call of it."""
        found: dict[str, list[Tensor]] = {}
        self._found.outputs = found
        network = self._network
        x, mask = network.stem(network.embed(inputs), None)
        x, mask = network.head.prepend_class_tokens(x, mask)
        x, mask = network.encoder(x, mask)  # of all positions, and not only of those that the head reads
        network.head(x, mask)
        return found

    def _keep_output(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        self._keep(name, output)

    def _keep(self, name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):  # modules of other packages may put out records of their own
            self._found.outputs.setdefault(name, []).append(first)


def choose_layer(network: Network, name: str, others: Iterable[str] = ()) -> Layer:
    """Return the layer of a name.

    Raises SonolexError for a name that no layer has; it lists all, and `others` before them.
    """
    layers = find_layers(network)
    if name not in layers:
        known = ", ".join([*others, *_shorten(layers)])
        raise SonolexError(f"layer: expected one of {known}, found {name!r}")
    return layers[name]


def find_layers(network: Network) -> dict[str, Layer]:
    """Return the layers of a network by name, from its input to its head."""
    names = [name for name, module in network.named_modules() if _may_be_layer(name, module)]
    outputs = LayerOutputs(network, [*names, HEAD])
    longer = min(network.stem.max_frames or _FRAMES, _FRAMES)
    lengths = (max(1, longer // 2), longer)
    short, long = (outputs.of(_probe(network, length)) for length in lengths)
    outputs.remove()
    counts = _Counts.of(network, short, long, lengths[1] - lengths[0])
    layers = {}
    for name in [*names, HEAD]:
        if len(short.get(name, [])) == 1 and (layer := counts.layer(name, short[name][0], long[name][0])):
            layers[name] = layer
    return layers


@dataclass(frozen=True)
class _Counts:
    """Numbers of positions of a network's parts at the longer of two probes."""

    network: Network
    stem: int
    encoder: int
    added_frames: int  # of the longer probe

    @classmethod
    def of(
        cls, network: Network, short: Mapping[str, list[Tensor]], long: Mapping[str, list[Tensor]], added: int
    ) -> "_Counts":
        tokens = network.head.num_class_tokens
        return cls(network, long["stem"][0].shape[1], long["encoder"][0].shape[1] - tokens, added)

    def layer(self, name: str, short: Tensor, long: Tensor) -> Layer | None:
        """Return the layer of a module by its outputs at two lengths; None for outputs without an axis along time."""
        if name == HEAD:
            return Layer(long.shape[1], None) if long.ndim == 2 else None
        if long.ndim not in (3, 4) or short.ndim != long.ndim or len(long) != _BATCH:
            return None
        grown = [axis for axis in range(1, long.ndim) if long.shape[axis] != short.shape[axis]]
        axis = grown[0] if len(grown) == 1 else None if grown else self._fixed_axis(name, long)
        if axis is None or (long.ndim == 4 and axis == 1):
            return None
        dim = long.shape[1] if long.ndim == 4 else long.shape[3 - axis]
        if name == "input":
            return Layer(dim, axis)
        if placed := self._placed(name, dim, axis, long):
            return placed
        added = long.shape[axis] - short.shape[axis]
        return Layer(dim, axis, stride=round(self.added_frames / added)) if added else None

    def _placed(self, name: str, dim: int, axis: int, output: Tensor) -> Layer | None:
        """Return the layer whose positions are those of the stem or of the encoder, or their time steps."""
        num = output.shape[axis]
        for place in ("stem", "encoder") if name.startswith("stem") else ("encoder", "stem"):
            part = self.network.stem if place == "stem" else self.network.encoder
            positions = self.stem if place == "stem" else self.encoder
            tokens = self._class_tokens(name)
            if output.ndim == 3 and num in (positions, positions + tokens):
                return Layer(dim, axis, num - positions, part.num_rows, part.stride, part.centre, place)
            if num == positions // part.num_rows:
                return Layer(dim, axis, stride=part.stride, centre=part.centre, place=place)
        return None

    def _fixed_axis(self, name: str, output: Tensor) -> int | None:
        """Return the time axis of an output whose length is that of padded clips."""
        stem = self.network.stem
        if output.ndim == 3:
            known = {self.stem, self.stem + self._class_tokens(name), self.encoder + self._class_tokens(name)}
            return 1 if output.shape[1] in known else None
        return 2 if tuple(output.shape[2:]) == (self.stem // stem.num_rows, stem.num_rows) else None

    def _class_tokens(self, name: str) -> int:
        return self.network.head.num_class_tokens if name.startswith("encoder") else 0


def _may_be_layer(name: str, module: nn.Module) -> bool:
    """Return whether a module is the input, or a part of stem or encoder; LSTMs read half of their inputs backwards."""
    return name == "input" or (name.split(".")[0] in ("stem", "encoder") and not isinstance(module, nn.LSTM))


def _probe(network: Network, length: int) -> Tensor:
    """Return inputs of a network that hold nothing: (B, T, mel) float32 or (B, codebook, T) int64."""
    metadata = network.input.metadata
    if network.input.reads == "tokens":
        return torch.zeros((_BATCH, metadata["num_codebooks"], length), dtype=torch.int64)
    return torch.zeros((_BATCH, length, metadata["n_mels"]))


def _shorten(names: Iterable[str]) -> Iterator[str]:
    """Yield names, once those that differ by their first number: encoder.blocks.{0..11}."""
    numbers: dict[str, list[str]] = {}
    for name in names:
        pattern, _ = _NUMBER.subn(".#", name, count=1)
        numbers.setdefault(pattern, []).extend(_NUMBER.findall(name)[:1])
    for pattern, found in numbers.items():
        yield pattern.replace("#", f"{{{found[0]}..{found[-1]}}}" if len(found) > 1 else "".join(found))
