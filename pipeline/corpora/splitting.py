"""Which clips a fold trains on and which it is tested on, and the proof that nothing leaks between them.

What a corpus publishes is never drawn again. Its `fold` column decides by what it says:

- names of roles (train, validation, test): one fold, called "official", with these roles;
- any other names: one fold each; its clips are the test clips, all others are for training;
- nothing: `num_folds` folds are drawn, by group, with every class spread over them as evenly as groups allow.

Clips of one group, and clips with the same audio, are drawn together. Roles follow from the manifest and the seed alone.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from pipeline.artifacts.splits import Role
from pipeline.artifacts.tables import Table
from pipeline.corpora.base import reject
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import Params
from pipeline.seeding import named_seed

OFFICIAL = "official"  # the one fold of a corpus that publishes roles

PUBLISHED_ROLES: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}

# Empty files are bad clips, not copies of each other.
_NO_AUDIO = ("", hashlib.sha256(b"").hexdigest()[:32])

Source = Literal["published roles", "published folds", "drawn folds"]


class SplitParams(Params):
    """How a fold's clips get their roles."""

    num_folds: Annotated[int, Field(ge=2)]  # drawn for a corpus that publishes none; others keep theirs
    validation_fraction: Annotated[NonNegativeFloat, Field(lt=1)]  # of the training clips; 0 = no validation clips
    seed: NonNegativeInt


def fold_names(clips: Table, params: SplitParams) -> list[str]:
    """Return the folds that can be asked for."""
    match _fold_source(clips):
        case "published roles":
            return [OFFICIAL]
        case "published folds":
            return sorted(set(clips.list("fold")), key=lambda name: (not name.isdecimal(), name.zfill(9), name))
        case "drawn folds":
            return [str(number + 1) for number in range(params.num_folds)]


def assign_roles(clips: Table, fold: str, params: SplitParams) -> list[Role]:
    """Return every clip's role in one fold, in manifest order.

    Raises CorpusError for an unknown fold and for every leak or gap (see `check_roles`), ParamsError where the params
    ask for validation clips besides published ones.
    """
    names = fold_names(clips, params)
    if fold not in names:
        raise CorpusError(
            f"{clips.path}: expected one of the folds {', '.join(names)} in experiment.folds, found {fold}"
        )
    roles: list[Role]
    source = _fold_source(clips)
    if source == "published roles":
        roles = [PUBLISHED_ROLES[name.lower()] for name in clips.list("fold")]
    else:
        folds = clips.list("fold") if source == "published folds" else _draw_folds(clips, params)
        roles = ["test" if name == fold else "train" for name in folds]
    if params.validation_fraction > 0:
        if "validation" in roles:
            raise ParamsError(
                "params.yaml: split.validation_fraction: expected 0, since the corpus publishes its own validation "
                f"clips, found {params.validation_fraction}"
            )
        _draw_validation(clips, roles, fold, params)
    check_roles(clips, roles, fold)
    return roles


def describe_rule(clips: Table, params: SplitParams) -> str:
    """Say in words how the roles came about."""
    rule: str = _fold_source(clips)
    if rule == "drawn folds":
        rule = f"{params.num_folds} folds drawn by group"
    if params.validation_fraction > 0:
        rule += f"; {params.validation_fraction:g} of the training clips drawn for validation by group"
    return rule


def check_roles(clips: Table, roles: Sequence[Role], fold: str) -> None:
    """Raise CorpusError that names every group and every audio in two roles, and every class that a role lacks.

    A class counts as present where a clip of it has its audio: a missing file trains and tests nothing.
    """
    ids, contents, labels = clips.list("clip_id"), clips.list("content"), clips.list("labels")
    present: dict[Role, set[int]] = {"train": set(), "validation": set(), "test": set()}
    for role, content, targets in zip(roles, contents, labels, strict=True):
        if content not in _NO_AUDIO:
            present[role].update(targets)
    classes: list[str] = clips.facts["classes"]
    problems = {
        "groups in two roles": _straddling(ids, roles, clips.list("group"), ignored=()),
        "the same audio in two roles; remove all but one of each from the corpus's table": _straddling(
            ids, roles, contents, ignored=_NO_AUDIO
        ),
        "classes without a training clip": [name for t, name in enumerate(classes) if t not in present["train"]],
        "classes without a test clip": [name for t, name in enumerate(classes) if t not in present["test"]],
    }
    reject(f"{clips.path}, fold {fold}", problems)


def _fold_source(clips: Table) -> Source:
    published = set(clips.list("fold"))
    if published == {""}:
        return "drawn folds"
    roles = {name for name in published if name.lower() in PUBLISHED_ROLES}
    if roles == published:
        return "published roles"
    if roles or "" in published:
        found = Counter(clips.list("fold"))
        spelled = ", ".join(f"{name or 'nothing'} ({found[name]} clips)" for name in sorted(published))
        raise CorpusError(
            f"{clips.path}: fold: expected for all clips roles ({', '.join(PUBLISHED_ROLES)}), or for all clips the name of "
            f"a fold, or nothing for all, found {spelled}"
        )
    return "published folds"


def _draw_folds(clips: Table, params: SplitParams) -> list[str]:
    labels = clips.list("labels")
    shares = [1 / params.num_folds] * params.num_folds
    bins = _stratify(_units(clips), labels, shares, named_seed(params.seed, "folds"))
    return [str(number + 1) for number in bins]


def _draw_validation(clips: Table, roles: list[Role], fold: str, params: SplitParams) -> None:
    """Turn some of the training clips into validation clips, in place."""
    units, labels = _units(clips), clips.list("labels")
    training = [position for position, role in enumerate(roles) if role == "train"]
    bins = _stratify(
        [units[position] for position in training],
        [labels[position] for position in training],
        [1 - params.validation_fraction, params.validation_fraction],
        named_seed(params.seed, "validation", fold),
    )
    for position, number in zip(training, bins, strict=True):
        if number == 1:
            roles[position] = "validation"


def _units(clips: Table) -> list[str]:
    """Return what each clip must be drawn together with: its group, joined with every group that shares audio with it."""
    parents: dict[str, str] = {}

    def root(group: str) -> str:
        while parents.setdefault(group, group) != group:
            parents[group] = parents[parents[group]]
            group = parents[group]
        return group

    first_with: dict[str, str] = {}
    groups = clips.list("group")
    for group, content in zip(groups, clips.list("content"), strict=True):
        if content not in _NO_AUDIO:
            one, other = sorted((root(group), root(first_with.setdefault(content, group))))
            parents[other] = one
    return [root(group) for group in groups]


def _stratify(units: Sequence[str], labels: Sequence[Sequence[int]], shares: Sequence[float], seed: int) -> list[int]:
    """Deal whole units into bins that get their share of every class as nearly as units allow; return each clip's bin.

    A greedy form of iterative stratification (Sechidis et al., 2011, "On the stratification of multi-label data"):
    units with the rarest class come first, larger before smaller, the seed decides among equals; each goes to the bin
    that still lacks most of that class.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, unit in enumerate(units):
        members[unit].append(position)
    class_sizes = Counter(target for targets in labels for target in targets)
    rarest = {
        unit: min(
            (target for position in positions for target in labels[position]),
            key=lambda target: (class_sizes[target], target),
            default=-1,
        )
        for unit, positions in members.items()
    }
    order = sorted(
        members,
        key=lambda unit: (
            class_sizes.get(rarest[unit], math.inf),
            rarest[unit],
            -len(members[unit]),
            named_seed(seed, unit),
        ),
    )
    lacking = [{target: share * size for target, size in class_sizes.items()} | {-1: 0.0} for share in shares]
    room = [share * len(units) for share in shares]
    bins = [0] * len(units)
    for unit in order:
        chosen = max(range(len(shares)), key=lambda number: (lacking[number][rarest[unit]], room[number], -number))
        for position in members[unit]:
            bins[position] = chosen
            room[chosen] -= 1
            for target in labels[position]:
                lacking[chosen][target] -= 1
    return bins


def _straddling(ids: Sequence[str], roles: Sequence[Role], keys: Sequence[str], *, ignored: Sequence[str]) -> list[str]:
    """Describe each key (a group, a content) whose clips have several roles, by one clip of each role."""
    examples: dict[str, dict[Role, str]] = defaultdict(dict)
    for clip_id, role, key in zip(ids, roles, keys, strict=True):
        if key not in ignored:
            examples[key].setdefault(role, clip_id)
    return [
        f"{key} ({', '.join(f'{role}: {clip_id}' for role, clip_id in sorted(found.items()))})"
        for key, found in examples.items()
        if len(found) > 1
    ]
