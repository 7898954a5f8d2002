"""Near-duplicates on the report page: the pairs, and in which folds their clips have two roles."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.duplicates import DuplicatesTable
from pipeline.artifacts.splits import Role
from pipeline.artifacts.tables import Table
from pipeline.corpora.copies import find_separated

_SHOWN = 100  # pairs; those in two roles come first


@dataclass(frozen=True)
class DuplicateRow:
    """One row of the table of pairs."""

    clip_id: str
    other_id: str
    labels: tuple[str, str]  # of both clips
    correlation: float
    lag: float  # seconds by which `clip_id` has later what `other_id` has
    identical: bool  # the same frames
    separated: dict[str, tuple[Role, Role]]  # fold -> roles of both clips, where they differ
    excluded: list[str]  # folds in which one of the clips is excluded


@dataclass(frozen=True)
class DuplicatePairs:
    """What the page says of near-duplicates."""

    searched: bool
    threshold: float
    rows: list[DuplicateRow]  # those shown
    num_pairs: int
    num_separated: int  # pairs with two roles in a fold


def describe_duplicates(clips: ClipTable, duplicates: DuplicatesTable, splits: Mapping[str, Table]) -> DuplicatePairs:
    """Return what the page says of the pairs, those with two roles in a fold first."""
    roles: dict[str, list[Role]] = {fold: split.list("role") for fold, split in splits.items()}
    separated = {
        (fold, pair.clip_id, pair.other_id): (pair.role, pair.other_role)
        for fold in roles
        for pair in find_separated(clips, duplicates, roles[fold])
    }
    own = set(duplicates.list("clip_id")) | set(duplicates.list("other_id"))
    row_of = {clip: row for row, clip in enumerate(clips.list("clip_id")) if clip in own}
    labels, classes = clips["labels"], clips.metadata["classes"]
    named = {clip: ", ".join(classes[label] for label in labels[row].as_py()) for clip, row in row_of.items()}
    rows = [
        DuplicateRow(
            **pair,
            labels=(named[pair["clip_id"]], named[pair["other_id"]]),
            separated={
                f: separated[key] for f in roles if (key := (f, pair["clip_id"], pair["other_id"])) in separated
            },
            excluded=[
                fold
                for fold, of_fold in roles.items()
                if "excluded" in (of_fold[row_of[pair["clip_id"]]], of_fold[row_of[pair["other_id"]]])
            ],
        )
        for pair in duplicates.columns.to_pylist()
    ]
    rows.sort(key=lambda row: (not row.separated, not row.excluded, -row.correlation))
    metadata, num_separated = duplicates.metadata, sum(bool(row.separated) for row in rows)
    return DuplicatePairs(metadata["searched"], metadata["threshold"], rows[:_SHOWN], len(rows), num_separated)
