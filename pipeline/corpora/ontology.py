"""Ontology of classes: AudioSet's, or a table of (parent, child) pairs.

`.json`   AudioSet's form: a list of nodes with `id`, `name` and `child_ids` (Gemmeke et al., 2017)
`.csv`    columns `parent` and `child`, both names

Conventions: P parent or ancestor, C child or descendant, both (class,) in the order of the class list; classes are found by
name. A class may have several parents. Nodes that are not classes (AudioSet has 105, such as "Human sounds") are not
parents, but connect classes: what is below them is below their ancestors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import read_rows
from pipeline.errors import CorpusError


@dataclass(frozen=True, eq=False)
class Ontology:
    """Parent-child and ancestor-descendant relations of a corpus's classes."""

    children: NDArray[np.bool_]  # (P, C): C is a direct child of P
    descendants: NDArray[np.bool_]  # (P, C): C is below P at any depth
    unknown: tuple[str, ...]  # classes that the ontology does not have


def read_ontology(path: Path, classes: list[str]) -> Ontology:
    """Read the relations that an ontology has between these classes.

    Raises CorpusError when the file is not an ontology, has a cycle, or has none of the classes.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: expected an ontology (labels.ontology), found no such file")
    children = _read_json(path) if path.suffix == ".json" else _read_pairs(path)
    position = {name: number for number, name in enumerate(classes)}
    unknown = tuple(name for name in classes if name not in children)
    if len(unknown) == len(classes):
        raise CorpusError(
            f"{path}: expected the classes of the corpus ({', '.join(classes[:3])}, ...) by name, found none of them, but "
            f"{', '.join(list(children)[:3])}, ...; write a CSV with columns parent and child in the corpus's own names"
        )
    below = _descendants(path, children)
    direct, anywhere = (np.zeros((len(classes), len(classes)), dtype=np.bool_) for _ in range(2))
    for name, number in position.items():
        direct[number, [position[child] for child in children.get(name, ()) if child in position]] = True
        anywhere[number, [position[child] for child in below.get(name, ()) if child in position]] = True
    return Ontology(direct, anywhere, unknown)


def _read_json(path: Path) -> dict[str, list[str]]:
    """Return name -> names of its children."""
    try:
        nodes = parse_json(path.read_bytes())
        names = {node["id"]: node["name"] for node in nodes}
        return {node["name"]: [names[child] for child in node["child_ids"]] for node in nodes}
    except (ValueError, TypeError, KeyError) as error:
        expected = "a list of nodes with `id`, `name` and `child_ids`, which are ids of nodes"
        raise CorpusError(f"{path}: expected {expected}, found {type(error).__name__}: {error}") from None


def _read_pairs(path: Path) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {}
    for row in read_rows(path, ("parent", "child")):
        children.setdefault(row["parent"], []).append(row["child"])
        children.setdefault(row["child"], [])
    return children


def _descendants(path: Path, children: dict[str, list[str]]) -> dict[str, set[str]]:
    """Return name -> everything below it."""
    below: dict[str, set[str]] = {}

    def visit(name: str, way: tuple[str, ...]) -> set[str]:
        if name in way:
            circle = " > ".join((*way[way.index(name) :], name))
            raise CorpusError(f"{path}: expected no class below itself, found the circle {circle}")
        if name not in below:
            below[name] = set().union(*({child} | visit(child, (*way, name)) for child in children[name]))
        return below[name]

    for name in children:
        visit(name, ())
    return below
