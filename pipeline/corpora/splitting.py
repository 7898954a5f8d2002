"""Splits: the role of every clip in a fold (train, validation, test, excluded), and the checks for leaks between roles.

Published folds and roles are used as they are. The values of the `fold` column decide:

- names of roles (train, validation, test): one fold, called "official", with these roles;
- any other names: one fold each; its clips are the test clips, all others are for training. A mark after the name, such as
  `FOLD--train`, says what clips are used for (`USES`): where another role would be theirs, they are excluded;
- empty: `num_folds` folds are drawn, by group, with every class spread over them as evenly as groups allow.

A fold F has inner folds F-1, F-2 ... F-`num_folds` (nested cross-validation; Stone, 1974): its training clips are drawn into
`num_folds` subsets, of which one is tested and the others train; the test clips of F are excluded. The models of all inner
folds together give out-of-fold scores for every training clip of F, without access to test clips of F.

Clips of one group, and clips with the same audio, are drawn together. Where published roles or folds separate clips with the
same audio, the test clip stays and its copies are excluded. Audio is the same where the manifest has the same content; where
near-duplicates count, `pipeline/corpora/copies.py` has given them one. Roles follow from the manifest and the seed alone.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.spectrogram import IndexMetadata
from pipeline.artifacts.splits import ROLES, Role, SplitMetadata
from pipeline.artifacts.tables import Table
from pipeline.corpora.base import reject
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import Params
from pipeline.seeding import named_seed

OFFICIAL = "official"  # the one fold of a corpus that publishes roles


class Use(NamedTuple):
    """What the clips of a published fold are used for; validation clips are drawn from the folds that are not tested."""

    trains: bool
    validates: bool
    tests: bool


# By the mark after the name of a fold.
USES = {
    "": Use(True, True, True),
    "--train": Use(True, True, False),
    "--test": Use(False, False, True),
    "--only-train": Use(True, False, False),
    "--only-validation": Use(False, True, False),
    "--not-train": Use(False, True, True),
    "--not-validation": Use(True, False, True),
}

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

_REMEDY = (
    "A class needs clips with audio in both: take the class out of the corpus's table, or take more clips. For AudioSet, "
    "corpus.min_clips=1 leaves such classes out, corpus.parts takes a larger part, and without an evaluation set "
    "corpus.test_share=0.1 draws test clips"
)

T = TypeVar("T", int, str)

Source = Literal["published roles", "published folds", "drawn folds"]


class SplitParams(Params):
    """The section `split`: how folds and validation clips are drawn."""

    num_folds: Annotated[int, Field(ge=2)]  # folds drawn where a corpus publishes none, and inner folds of every fold
    validation_fraction: Annotated[NonNegativeFloat, Field(lt=1)]  # of the training clips; 0 = no validation clips
    seed: NonNegativeInt
    near_duplicates: Literal["report", "exclude"]  # pairs in two roles: named only, or treated as the same audio is


def fold_names(clips: ClipTable, params: SplitParams) -> list[str]:
    """Return the names of the folds of a corpus."""
    return folds_of(clips["fold"], params, clips.path)


def folds_of(published: pa.ChunkedArray, params: SplitParams, where: Path) -> list[str]:
    """Return the names of the folds, from the published fold or role of each clip ("" = none). `where` is for messages."""
    match _fold_source(published, where):
        case "published roles":
            return [OFFICIAL]
        case "published folds":
            names = {_divide(name)[0] for name in pc.unique(published).to_pylist()}
            return sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(9), name))
        case "drawn folds":
            return [str(number + 1) for number in range(params.num_folds)]


def count_training_clips(published: pa.ChunkedArray, params: SplitParams, where: Path) -> int:
    """Return how many clips the smallest training set of a fold has, about, from the published fold or role of each clip."""
    match _fold_source(published, where):
        case "published roles":
            return sum(PUBLISHED_ROLES[name.lower()] == "train" for name in published.to_pylist())
        case "published folds":
            divided = map(_divide, published.to_pylist())
            trained = Counter(fold for fold, use in divided if use.trains)
            return sum(trained.values()) - max(trained.values(), default=0)
        case "drawn folds":
            return len(published) - -(-len(published) // params.num_folds)


def assign_roles(clips: ClipTable, fold: str, params: SplitParams) -> list[Role]:
    """Return every clip's role in one fold, in manifest order.

    Raises CorpusError for an unknown fold and for every leak or missing class (see `check_roles`), ParamsError where the
    params ask for validation clips and the corpus publishes some.
    """
    names = fold_names(clips, params)
    require_known(fold, names, params, clips.path)
    outer, inner = outer_fold(fold, names, params.num_folds)
    roles = _published_or_drawn(clips, outer, params)
    if inner:
        exclude_copies(clips, roles)
        _draw_inner_fold(clips, roles, inner, params)
    if params.validation_fraction > 0:
        if "validation" in roles:
            raise ParamsError(
                "params.yaml: split.validation_fraction: expected 0, since the corpus publishes its own validation "
                f"clips, found {params.validation_fraction}"
            )
        _draw_validation(clips, roles, fold, params)
    _keep_to_uses(clips, roles, inner=bool(inner))
    exclude_copies(clips, roles)
    check_roles(clips, roles, fold, every_class_tested=not inner)
    return roles


def require_known(fold: str, names: Sequence[str], params: SplitParams, where: Path) -> None:
    """Raise CorpusError unless `fold` is one of the corpus's folds `names`, or an inner fold of one."""
    if outer_fold(fold, names, params.num_folds)[0] not in names:
        raise CorpusError(
            f"{where}: expected one of the folds {', '.join(names)} in experiment.folds, found {fold}; inner "
            f"folds are called {names[0]}-1 to {names[0]}-{params.num_folds}"
        )


def inner_fold_names(fold: str, num_inner_folds: int) -> list[str]:
    """Return the names of a fold's inner folds."""
    return [f"{fold}-{number + 1}" for number in range(num_inner_folds)]


def outer_fold(fold: str, names: Sequence[str], num_inner_folds: int) -> tuple[str, int]:
    """Return the outer fold of an inner fold and the inner fold's number, from 1; `fold` itself and 0 for an outer one."""
    outer, _, number = fold.rpartition("-")
    if fold in names or not number.isdecimal() or not 1 <= int(number) <= num_inner_folds:
        return fold, 0
    return outer, int(number)


def describe_rule(clips: ClipTable, params: SplitParams, fold: str = "") -> str:
    """Return a description of how the roles were assigned, for people."""
    rule: str = _fold_source(clips["fold"], clips.path)
    if rule == "drawn folds":
        rule = f"{params.num_folds} folds drawn by group"
    outer, inner = outer_fold(fold, fold_names(clips, params), params.num_folds)
    if inner:
        rule += f"; inner fold {inner} of {params.num_folds}, drawn from the training clips of fold {outer}"
    if params.validation_fraction > 0:
        rule += f"; {params.validation_fraction:g} of the training clips drawn for validation by group"
    return rule


def check_roles(clips: ClipTable, roles: Sequence[Role], fold: str, *, every_class_tested: bool = True) -> None:
    """Raise CorpusError that names every group in two roles, and every class that a role lacks.

    An inner fold need not test every class, since it only scores clips. A class counts as present where a clip of it has
    audio.
    """
    codes = pc.index_in(pa.array(roles, pa.string()), pa.array(ROLES, pa.string())).to_numpy().astype(np.int8)
    audible = _audible(clips)
    labels = clips["labels"].combine_chunks()
    owners, targets = pc.list_parent_indices(labels).to_numpy(), labels.flatten().to_numpy()
    present_owners = audible[owners]
    present = {role: set(targets[present_owners & (codes[owners] == code)].tolist()) for code, role in enumerate(ROLES)}
    classes: list[str] = clips.metadata["classes"]
    untested = [name for t, name in enumerate(classes) if t not in present["test"]]
    where = f"{clips.path}, fold {fold}"
    lacking = {
        "classes without a training clip": [name for t, name in enumerate(classes) if t not in present["train"]],
        "classes without a test clip": untested if every_class_tested else [],
    }
    reject(
        where, {"groups in two roles": _straddling(clips, codes)} | lacking, _REMEDY if any(lacking.values()) else ""
    )


def check_frames(clips: ClipTable, split: Table[SplitMetadata], index: Table[IndexMetadata]) -> None:
    """Raise CorpusError that names every class whose training clips all failed, with the reasons."""
    columns = split.columns.filter(pc.equal(split["role"], "train")).select(["clip_id"])
    columns = columns.append_column("labels", clips["labels"].take(pc.index_in(columns["clip_id"], clips["clip_id"])))
    places = pc.index_in(columns["clip_id"], index["clip_id"])
    columns = columns.append_column("reason", index["reason"].take(places)).combine_chunks()
    labels = columns["labels"].combine_chunks()
    reasons: dict[int, Counter[str]] = defaultdict(Counter)
    owners = pc.list_parent_indices(labels)
    for target, reason in zip(labels.flatten().to_pylist(), columns["reason"].take(owners).to_pylist(), strict=True):
        reasons[target][reason] += 1
    lost = {target: found for target, found in sorted(reasons.items()) if not found[""]}
    names = [
        f"{clips.metadata['classes'][target]} ({', '.join(f'{count} {why}' for why, count in sorted(found.items()))})"
        for target, found in lost.items()
    ]
    where = f"{index.path}, fold {split.metadata['fold']}"
    reject(where, {"classes whose training clips all failed (mend the files, or leave the classes out)": names})


def exclude_copies(clips: ClipTable, roles: list[Role]) -> None:
    """Exclude, in place, every clip whose audio also occurs in a later role (train < validation < test)."""
    positions = pa.array(np.flatnonzero(_audible(clips)))
    contents = clips["content"].take(positions)
    copied = pc.is_in(contents, _repeated(contents))
    by_content: dict[str, list[int]] = defaultdict(list)
    for position, content in zip(
        positions.filter(copied).to_pylist(), contents.filter(copied).to_pylist(), strict=True
    ):
        by_content[content].append(position)
    for copies in by_content.values():
        last = max(ROLES.index(roles[position]) for position in copies)
        for position in copies:
            if ROLES.index(roles[position]) < last:
                roles[position] = "excluded"


def _fold_source(published: pa.ChunkedArray, where: Path) -> Source:
    counted = pc.value_counts(published)
    found = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    if set(found) == {""}:
        return "drawn folds"
    roles = {name for name in found if name.lower() in PUBLISHED_ROLES}
    if roles == set(found):
        return "published roles"
    if roles or "" in found:
        spelled = ", ".join(f"{name or 'nothing'} ({found[name]} clips)" for name in sorted(found))
        raise CorpusError(
            f"{where}: fold: expected for all clips roles ({', '.join(PUBLISHED_ROLES)}), or for all clips the name of "
            f"a fold, or nothing for all, found {spelled}"
        )
    return "published folds"


def _published_or_drawn(clips: ClipTable, fold: str, params: SplitParams) -> list[Role]:
    source = _fold_source(clips["fold"], clips.path)
    folds = _draw_folds(clips, params) if source == "drawn folds" else clips["fold"]
    values = pc.unique(folds)
    roles_of: list[Role] = [
        PUBLISHED_ROLES[name.lower()] if source == "published roles" else _role_in(fold, name)
        for name in values.to_pylist()
    ]
    return [roles_of[position] for position in pc.index_in(folds, values).to_pylist()]


def _divide(name: str) -> tuple[str, Use]:
    """Return the fold that a published name stands for, and what its clips are used for."""
    fold, dashes, mark = name.rpartition("--")
    use = USES.get(dashes + mark) if dashes else None
    return (name, USES[""]) if use is None else (fold, use)


def _role_in(fold: str, name: str) -> Role:
    """Return the role, where `fold` is tested, of clips with this published name of a fold.

    Clips that are used for validation alone are training clips until validation clips are drawn; see `_keep_to_uses`.
    """
    own, use = _divide(name)
    if own == fold:
        return "test" if use.tests else "excluded"
    return "train" if use.trains or use.validates else "excluded"


def _keep_to_uses(clips: ClipTable, roles: list[Role], *, inner: bool) -> None:
    """Exclude, in place, clips that are not used for the role drawn for them; inner folds test what is trained on."""
    if _fold_source(clips["fold"], clips.path) != "published folds":
        return
    uses = {name: _divide(name)[1] for name in pc.unique(clips["fold"]).to_pylist()}
    for position, name in enumerate(clips.list("fold")):
        use, role = uses[name], roles[position]
        used = {"train": use.trains, "validation": use.validates, "test": use.trains or not inner, "excluded": False}
        if not used[role]:
            roles[position] = "excluded"


def _draw_inner_fold(clips: ClipTable, roles: list[Role], inner: int, params: SplitParams) -> None:
    """Make one of the equal subsets of the training clips the test clips, and exclude the outer fold's others, in place."""
    training = np.array([position for position, role in enumerate(roles) if role == "train"], dtype=np.int64)
    roles[:] = ["train" if role == "train" else "excluded" for role in roles]
    units, labels = _units(clips).take(pa.array(training)), clips["labels"].combine_chunks().take(pa.array(training))
    bins = _stratify(units, labels, [1 / params.num_folds] * params.num_folds, named_seed(params.seed, "parts"))
    for position in training[bins == inner - 1].tolist():
        roles[position] = "test"


def _draw_folds(clips: ClipTable, params: SplitParams) -> pa.Array:
    shares = [1 / params.num_folds] * params.num_folds
    labels = clips["labels"].combine_chunks()
    bins = _stratify(_units(clips), labels, shares, named_seed(params.seed, "folds"))
    return pa.array([str(number + 1) for number in bins.tolist()], pa.string())


def _draw_validation(clips: ClipTable, roles: list[Role], fold: str, params: SplitParams) -> None:
    """Turn some of the training clips into validation clips, in place."""
    training = np.array([position for position, role in enumerate(roles) if role == "train"], dtype=np.int64)
    shares = [1 - params.validation_fraction, params.validation_fraction]
    units, labels = _units(clips).take(pa.array(training)), clips["labels"].combine_chunks().take(pa.array(training))
    bins = _stratify(units, labels, shares, named_seed(params.seed, "validation", fold))
    for position in training[bins == 1].tolist():
        roles[position] = "validation"


def first_linked(pairs: Iterable[tuple[T, T]]) -> dict[T, T]:
    """Return for each member of the pairs the smallest one that it is linked with, directly or through others."""
    parents: dict[T, T] = {}

    def root(member: T) -> T:
        while parents.setdefault(member, member) != member:
            parents[member] = parents[parents[member]]
            member = parents[member]
        return member

    for one, other in pairs:
        roots = root(one), root(other)
        parents[max(roots)] = min(roots)
    return {member: root(member) for member in list(parents)}


def _units(clips: ClipTable) -> pa.Array:
    """Return the unit that each clip is drawn with: its group, joined with all groups that share audio with it."""
    groups, contents = clips["group"].combine_chunks(), clips["content"].combine_chunks()
    sharing = pc.is_in(contents, _repeated(contents.filter(pa.array(_audible(clips)))))
    first_with: dict[str, str] = {}
    shared = zip(groups.filter(sharing).to_pylist(), contents.filter(sharing).to_pylist(), strict=True)
    first = first_linked((group, first_with.setdefault(content, group)) for group, content in shared)
    joined, roots = pa.array(list(first), pa.string()), pa.array(list(first.values()), pa.string())
    return pc.coalesce(roots.take(pc.index_in(groups, joined)), groups)


def _stratify(units: pa.Array, labels: pa.ListArray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Deal whole units into bins that get their share of every class as nearly as units allow; return each clip's bin.

    A greedy form of iterative stratification (Sechidis et al., 2011, "On the stratification of multi-label data"): units
    with the rarest class come first, larger before smaller, ties in random order; each goes to the bin that lacks most of
    that class.
    """
    names = pc.unique(units)
    unit_of = pc.index_in(units, names).to_numpy()
    targets, ends = labels.flatten().to_numpy().astype(np.int64), np.cumsum(pc.list_value_length(labels).to_numpy())
    class_sizes = np.bincount(targets)
    rank = np.empty(len(class_sizes), dtype=np.int64)  # of each class by its size, the rarest 0
    rank[np.argsort(class_sizes, kind="stable")] = np.arange(len(class_sizes))
    ranks = rank[targets]
    rarest = np.full(len(names), len(class_sizes))  # of the unit's classes; after all of them where it has none
    np.minimum.at(rarest, unit_of[pc.list_parent_indices(labels).to_numpy()], ranks)
    unit_sizes = np.bincount(unit_of, minlength=len(names))
    draws = np.array([named_seed(seed, name) for name in names.to_pylist()], dtype=np.int64)
    order = np.lexsort((draws, -unit_sizes, rarest))

    # Plain lists from here on: the loop takes one value at a time.
    clips_in_order = np.argsort(unit_of, kind="stable").tolist()
    unit_ends = np.cumsum(unit_sizes).tolist()
    wanted, clip_ranks, clip_ends = rarest.tolist(), ranks.tolist(), [0, *ends.tolist()]
    lacking = [[share * size for size in np.sort(class_sizes).tolist()] + [0.0] for share in shares]
    room = [share * len(units) for share in shares]
    bins = np.zeros(len(units), dtype=np.int64)
    for unit in order.tolist():
        _, _, last = max((lacking[number][wanted[unit]], room[number], -number) for number in range(len(shares)))
        for clip in clips_in_order[unit_ends[unit] - int(unit_sizes[unit]) : unit_ends[unit]]:
            bins[clip] = -last
            room[-last] -= 1
            for target in clip_ranks[clip_ends[clip] : clip_ends[clip + 1]]:
                lacking[-last][target] -= 1
    return bins


def _audible(clips: ClipTable) -> np.ndarray:
    """Return whether each clip's file exists and is not empty: (clip,) bool."""
    silent = pc.is_in(clips["content"], pa.array(_NO_AUDIO, pa.string()))
    return np.asarray(pc.invert(silent).combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)


def _repeated(values: pa.ChunkedArray) -> pa.Array:
    """Return the values that occur more than once."""
    counted = pc.value_counts(values)
    return counted.field("values").filter(pc.greater(counted.field("counts"), 1))


def _straddling(clips: ClipTable, codes: np.ndarray) -> list[str]:
    """Return a description of each group with several roles, with one clip of each; excluded clips have no role."""
    considered = codes != ROLES.index("excluded")
    keys, ids = (clips[column].filter(pa.array(considered)) for column in ("group", "clip_id"))
    codes = codes[considered]
    values = pc.unique(keys)
    key_of = pc.index_in(keys, values).combine_chunks().to_numpy()
    lowest, highest = np.full(len(values), len(ROLES), dtype=np.int8), np.full(len(values), -1, dtype=np.int8)
    np.minimum.at(lowest, key_of, codes)
    np.maximum.at(highest, key_of, codes)
    torn = (lowest < highest)[key_of]
    torn_ids = ids.filter(pa.array(torn)).to_pylist()
    examples: dict[str, dict[Role, str]] = defaultdict(dict)
    for clip_id, code, key in zip(torn_ids, codes[torn].tolist(), keys.filter(pa.array(torn)).to_pylist(), strict=True):
        examples[key].setdefault(ROLES[code], clip_id)
    return [
        f"{key} ({', '.join(f'{role}: {clip_id}' for role, clip_id in sorted(found.items()))})"
        for key, found in examples.items()
    ]
