"""Ontology of classes: AudioSet's, or a table of (parent, child) pairs.

`.json`   AudioSet's form: a list of nodes with `id`, `name` and `child_ids` (Gemmeke et al., 2017)
`.csv`    columns `parent` and `child`, both names

In a JSON file classes are found by id where the corpus has ids (FSD50K's names differ from AudioSet's), else by name.

Abstract nodes (`restrictions: [abstract]`) have no children here, as in PSLA (Gong, Chung and Glass, 2021): jazz is below
the abstract "Music genre", and not by that below "Music". Other nodes that are not classes connect classes: what is below
them is below their ancestors. Of AudioSet's 527 classes 378 pairs are parent and child, and 767 ancestor and descendant.

Conventions: P parent or ancestor, C child or descendant, both (class,) in the order of the class list. A class may have
several parents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import read_rows
from pipeline.errors import CorpusError

_ABSTRACT = "abstract"  # of a node that is not a sound; one that is blacklisted too is not left out, as in PSLA


@dataclass(frozen=True, eq=False)
class Ontology:
    """Parent-child and ancestor-descendant relations of a corpus's classes."""

    children: NDArray[np.bool_]  # (P, C): C is a direct child of P
    descendants: NDArray[np.bool_]  # (P, C): C is below P at any depth
    unknown: tuple[str, ...]  # classes that the ontology does not have


def read_ontology(path: Path, classes: Sequence[str], ids: Sequence[str] | None = None) -> Ontology:
    """Read the relations that an ontology has between these classes, by their names or, in a JSON file, their `ids`.

    Raises CorpusError when the file is not an ontology, has a cycle, or has none of the classes.
    """
    if not path.is_file():
        raise CorpusError(f"{path}: expected an ontology (labels.ontology), found no such file")
    by_id = path.suffix == ".json" and ids is not None
    keys = ids if by_id and ids is not None else classes
    children = _read_json(path, by_id=by_id) if path.suffix == ".json" else _read_pairs(path)
    position = {key: number for number, key in enumerate(keys)}
    unknown = tuple(name for name, key in zip(classes, keys, strict=True) if key not in children)
    if len(unknown) == len(classes):
        raise CorpusError(
            f"{path}: expected the classes of the corpus ({', '.join(keys[:3])}, ...) by {'id' if by_id else 'name'}, found "
            f"none of them, but {', '.join(list(children)[:3])}, ...; write a CSV with columns parent and child in the "
            "corpus's own names"
        )
    below = _descendants(path, children)
    direct, anywhere = (np.zeros((len(classes), len(classes)), dtype=np.bool_) for _ in range(2))
    for key, number in position.items():
        direct[number, [position[child] for child in children.get(key, ()) if child in position]] = True
        anywhere[number, [position[child] for child in below.get(key, ()) if child in position]] = True
    return Ontology(direct, anywhere, unknown)


def _read_json(path: Path, *, by_id: bool) -> dict[str, list[str]]:
    """Return id or name of each node -> those of its children, none of an abstract one."""
    try:
        nodes = parse_json(path.read_bytes())
        keys = {node["id"]: node["id" if by_id else "name"] for node in nodes}
        children = {keys[node["id"]]: [keys[child] for child in node["child_ids"]] for node in nodes}
        abstract = {keys[node["id"]] for node in nodes if node.get("restrictions") == [_ABSTRACT]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        expected = "a list of nodes with `id`, `name` and `child_ids`, which are ids of nodes"
        raise CorpusError(f"{path}: expected {expected}, found {type(error).__name__}: {error}") from None
    return {key: [] if key in abstract else own for key, own in children.items()}


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
