"""Groups of a network's weights by name, for freezing and learning rates: its parts, and their modules and blocks.

A part (`input`, `stem`, `encoder`, `head`) is a group, and so is every module below it by its exact name, down to the items
of lists of blocks: `encoder`, `encoder.blocks`, `encoder.blocks.0`. Modules inside a block are no groups. Weights of a part
outside its modules are groups of their own (`stem.table`). Class tokens enter the encoder beside the stem's positions, so
they belong to the part `stem`, although their names begin with `head.`. What
pools windows belongs to `head`.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from torch import nn

from pipeline.models.network import Network

PARTS = ("input", "stem", "encoder", "head")


class WeightGroup(NamedTuple):
    """Weights that are frozen or get a learning rate together."""

    modules: tuple[str, ...]  # names of modules, or of weights, with all that is below them
    block: str = (
        ""  # of a block: the same for those that follow each other in parallel lists, such as norms of convolutions
    )

    def holds(self, name: str) -> bool:
        """Return whether a weight or module of this name belongs to the group."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


def weight_groups(network: Network) -> dict[str, WeightGroup]:
    """Return the groups of a network by name, from input to output; each part is followed by the groups in it."""
    entering = [f"head.{name}" for name in network.head.entering_weights]
    groups: dict[str, WeightGroup] = {}
    for part in PARTS:
        inner = {name: group for name, group in _below(part, network.get_submodule(part)) if name not in entering}
        if part == "head" and network.windows is not None:
            inner |= dict(_below("windows", network.windows))
        whole = tuple(inner) if part == "head" else (part,)
        if part == "stem":
            inner |= {name: WeightGroup((name,)) for name in entering}
            whole += tuple(entering)
        if inner:
            groups |= {part: WeightGroup(whole)} | inner
    return groups


def depths(network: Network) -> dict[str, int]:
    """Return name of a weight -> number of blocks from it to the head: 0 in the head, 1 in the encoder's last block.

    What comes before the first block (input, stem, the encoder's first layers) is one deeper than it. What follows the last
    block, such as a final norm, is as deep as the head. An encoder without blocks counts as one.
    """
    groups = weight_groups(network)
    encoder = [group for name, group in _innermost(groups) if name.startswith("encoder.")]
    order = list(dict.fromkeys(group.block for group in encoder if group.block))
    found: dict[str, int] = {}
    passed = 0
    for group in encoder:
        passed = max(passed, order.index(group.block) + 1 if group.block else 0)
        if not order:
            depth = 1
        elif group.block:
            depth = len(order) - order.index(group.block)
        else:
            depth = 0 if passed == len(order) else len(order) + 1 - passed
        found |= dict.fromkeys(group.modules, depth)
    deepest = max(1, len(order)) + 1
    return {
        weight: next(
            (depth for name, depth in found.items() if WeightGroup((name,)).holds(weight)),
            0 if groups["head"].holds(weight) else deepest,
        )
        for weight, _ in network.named_parameters()
    }


def spell_groups(groups: dict[str, WeightGroup]) -> str:
    """Return the names of groups for a message, with the blocks of a list as a range."""
    texts = []
    for _, run in groupby(groups, key=lambda name: f"{name.rpartition('.')[0]}." if groups[name].block else name):
        first, *others = run
        texts.append(f"{first} to {others[-1]}" if others else first)
    return ", ".join(texts)


def _innermost(groups: dict[str, WeightGroup]) -> list[tuple[str, WeightGroup]]:
    """Return the groups that hold no other group."""
    return [
        (name, group) for name, group in groups.items() if not any(other.startswith(f"{name}.") for other in groups)
    ]


def _below(name: str, module: nn.Module) -> Iterator[tuple[str, WeightGroup]]:
    """Yield the groups below a module that is no block, those that hold others before them."""
    for weight, _ in module.named_parameters(recurse=False):
        yield f"{name}.{weight}", WeightGroup((f"{name}.{weight}",))
    for child, inner in module.named_children():
        if next(inner.parameters(), None) is None:
            continue
        path = f"{name}.{child}"
        yield path, WeightGroup((path,))
        if isinstance(inner, nn.ModuleList | nn.Sequential):
            # Sequential lists follow each other, other lists of one module run side by side.
            order = path if isinstance(inner, nn.Sequential) else name
            for item, block in inner.named_children():
                if next(block.parameters(), None) is not None:
                    yield f"{path}.{item}", WeightGroup((f"{path}.{item}",), f"{order}.{item}")
        elif any(isinstance(part, nn.ModuleList | nn.Sequential) for part in inner.modules()):
            yield from _below(path, inner)
