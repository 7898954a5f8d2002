"""`sonolex graph`: draw the graph of stages in 100 columns, one row per stage of dvc.yaml with all items of its matrix.

Stages and edges come from DVC's index. In the tree, a stage's parent is its deepest dependency; other dependencies are
listed next to it, without indirect ones.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from dvc.dvcfile import load_file
from dvc.exceptions import DvcException
from dvc.parsing import EntryDefinition, ForeachDefinition, MatrixDefinition
from dvc.parsing.interpolate import to_str
from dvc.repo import Repo
from dvc.stage import Stage
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import SonolexError

WIDTH = 100  # columns

# States of items, in the order in which they are shown.
STATES = {"never run": "magenta", "stale": "yellow", "follows": "cyan", "always runs": "cyan", "up to date": "green"}


@dataclass
class Group:
    """A stage of dvc.yaml, with all items of its matrix."""

    name: str
    axes: dict[str, list[str]] = field(default_factory=dict)  # of its matrix: name -> values
    items: list[Stage] = field(default_factory=list)  # DVC's; none where an axis of the matrix is empty
    needs: set[str] = field(default_factory=set)  # groups, without indirect dependencies
    states: Counter[str] = field(default_factory=Counter)


def run(*, status: bool, mermaid: bool, console: Console) -> None:
    """Print the graph of the repository."""
    try:
        with Repo(_wait_for_lock=True) as repo:
            groups = load_groups(repo)
            if status:
                add_states(repo, groups)
    except DvcException as error:
        raise SonolexError(f"dvc: {error}") from None
    if mermaid:
        console.print("\n".join(mermaid_lines(groups)), markup=False, highlight=False, soft_wrap=True)
        return
    width = min(WIDTH, console.width)
    console.print(drawing(groups), width=width)
    if status:
        return
    console.print()
    for line in legend(groups):
        console.print(line, width=width, markup=False, highlight=False)


def load_groups(repo: Repo) -> dict[str, Group]:
    """Return the groups by name, in the order of dvc.yaml; then each stage of other files as a group."""
    with repo.lock:
        graph = repo.index.graph
        definitions = load_file(repo, "dvc.yaml").resolver.definitions
    groups = {name: Group(name, _axes(definition)) for name, definition in definitions.items()}
    for stage in graph:
        groups.setdefault(_group_name(stage), Group(_group_name(stage))).items.append(stage)
    order = {name: number for number, name in enumerate(groups)}
    for stage, needed in graph.edges:
        name, other = _group_name(stage), _group_name(needed)
        if order[other] != order[name]:
            groups[name].needs.add(other)
    _reduce(groups, order)
    return groups


def _reduce(groups: Mapping[str, Group], order: Mapping[str, int]) -> None:
    """Remove indirect dependencies; of two groups whose items depend on each other, keep one direction."""
    try:
        names = list(TopologicalSorter({name: group.needs for name, group in groups.items()}).static_order())
    except CycleError:
        names = list(groups)
        for name, group in groups.items():
            group.needs = {needed for needed in group.needs if order[needed] < order[name]}
    reach: dict[str, set[str]] = {}
    for name in names:
        needs = groups[name].needs
        through = set().union(*(reach[needed] for needed in needs))
        reach[name] = needs | through
        groups[name].needs = needs - through


def add_states(repo: Repo, groups: Mapping[str, Group]) -> None:
    """Count the states of each group's items; dependents of items that are not up to date have the state `follows`."""
    status = repo.status()
    graph = repo.index.graph
    states: dict[Stage, str] = {}
    for stage in TopologicalSorter({stage: list(graph.successors(stage)) for stage in graph}).static_order():
        reasons = [reason for reason in status.get(stage.addressing, []) if reason != "always changed"]
        if not any(out.hash_info for out in stage.outs):
            states[stage] = "never run"
        elif reasons:
            states[stage] = "stale"
        elif any(states[needed] in ("never run", "stale", "follows") for needed in graph.successors(stage)):
            states[stage] = "follows"
        else:
            states[stage] = "always runs" if stage.addressing in status else "up to date"
        groups[_group_name(stage)].states[states[stage]] += 1


def drawing(groups: Mapping[str, Group]) -> Table:
    """Return the graph as a table: tree of stages, items with their matrix or state, and other dependencies."""
    stateful = any(group.states for group in groups.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("items", justify="right", no_wrap=True)
    table.add_column("state" if stateful else "matrix")
    table.add_column("needs also", style="dim")
    for group, prefix, parent in _rows(groups):
        items = str(len(group.items)) if group.axes else ""
        others = ", ".join(name for name in groups if name in group.needs and name != parent)
        about = _spell_states(group) if stateful else escape(_spell_axes(group))
        table.add_row(f"[dim]{prefix}[/]{escape(group.name)}", items, about, escape(others))
    return table


def legend(groups: Mapping[str, Group]) -> Iterator[str]:
    """Yield the values of each axis, with their stages where an axis has several sets of values; then stages left out."""
    found: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for group in groups.values():
        if group.items:
            for axis, values in group.axes.items():
                found.setdefault(axis, {}).setdefault(tuple(values), []).append(group.name)
    for axis, sets in found.items():
        for choice, names in sets.items():
            of = f" of {', '.join(names)}" if len(sets) > 1 else ""
            yield f"{axis}{of}: {' '.join(choice)}"
    if empty := [name for name, group in groups.items() if not group.items]:
        yield f"not shown, since an axis is empty: {', '.join(empty)}"


def mermaid_lines(groups: Mapping[str, Group]) -> Iterator[str]:
    """Yield the graph in Mermaid's language, which GitHub draws in Markdown."""
    yield "flowchart LR"
    shown = [group for group in groups.values() if group.items]
    numbers = {group.name: f"s{number}" for number, group in enumerate(shown)}
    for group in shown:
        items = f"<br>{len(group.items)}: {' × '.join(group.axes)}" if group.axes else ""
        yield f'    {numbers[group.name]}["{group.name}{items}"]'
    for group in shown:
        for needed in groups:
            if needed in group.needs:
                yield f"    {numbers[needed]} --> {numbers[group.name]}"


def _rows(groups: Mapping[str, Group]) -> Iterator[tuple[Group, str, str]]:
    """Yield the groups as rows of a tree: with the tree lines before the name, and the parent, if any."""
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max(map(depth, groups[name].needs), default=0)
        return depths[name]

    order = list(groups)
    below: dict[str, list[str]] = {}
    for group in groups.values():
        if group.items:
            parent = max(group.needs, key=lambda name: (depth(name), order.index(name)), default="")
            below.setdefault(parent, []).append(group.name)

    def walk(parent: str, prefix: str) -> Iterator[tuple[Group, str, str]]:
        names = below.get(parent, [])
        for name in names:
            branch, line = ("", "") if not parent else ("└─ ", "   ") if name == names[-1] else ("├─ ", "│  ")
            yield groups[name], prefix + branch, parent
            yield from walk(name, prefix + line)

    yield from walk("", "")


def _axes(definition: EntryDefinition | ForeachDefinition | MatrixDefinition) -> dict[str, list[str]]:
    if isinstance(definition, EntryDefinition):
        return {}
    items = definition.normalized_iterable
    if isinstance(definition, ForeachDefinition):
        return {"item": list(items)}
    axes: dict[str, list[str]] = {axis: [] for axis in definition.resolved_iterable}
    for item in items.values():
        for axis, value in item.items():
            text = to_str(value)
            if text not in axes[axis]:
                axes[axis].append(text)
    return axes


def _group_name(stage: Stage) -> str:
    return str(stage.addressing).partition("@")[0]


def _spell_axes(group: Group) -> str:
    sizes = {axis: len(values) for axis, values in group.axes.items() if len(values) > 1}
    return " × ".join(f"{axis} {size}" for axis, size in sizes.items()) if len(sizes) > 1 else "".join(sizes)


def _spell_states(group: Group) -> str:
    found = [(state, group.states[state]) for state in STATES if group.states[state]]
    total = group.states.total()
    return ", ".join(f"[{STATES[state]}]{'' if count == total else f'{count} '}{state}[/]" for state, count in found)
