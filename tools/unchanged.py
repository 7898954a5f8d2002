"""Outputs that a run would write again as they are, although it runs their stages: those of unchanged development sets.

Where only test clips were added or changed, the stages `spectrogram`, `development` and `tokenize` run, and what others
learn from stays as it is (`pipeline/artifacts/development.py`). It is predicted from the manifest.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.development import DEVELOPMENT_ROLES, TARGETS, open_development, open_targets, target_columns
from pipeline.artifacts.duplicates import open_duplicates
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.training_labels import TrainingLabelTable
from pipeline.corpora.copies import join_copies
from pipeline.corpora.splitting import SplitParams, assign_roles
from pipeline.errors import SonolexError
from pipeline.grid import ExperimentParams
from pipeline.spectrogram import building

_INPUT = {"input"}


def unchanged_outputs(
    grid: ExperimentParams,
    split: SplitParams,
    layout: Layout,
    now: tuple[ClipTable, TrainingLabelTable],
    reasons: Mapping[str, set[str]],
) -> set[Path]:
    """Return the paths that a run with the manifest and the training labels `now` would leave as they are, to the byte.

    `reasons` are those for which DVC considers stages changed, by address; an output stays only where its stage, and those
    before it, are changed by their input alone.
    """

    def by_input_alone(*stages: str) -> bool:
        return all(reasons.get(stage, set()) <= _INPUT for stage in stages)

    if not by_input_alone("spectrogram", "duplicates"):
        return set()
    found = {layout.spectrogram_metadata}
    for fold in grid.folds:
        stages = f"split@{fold}", f"development@{fold}"
        if not by_input_alone(*stages) or not _development_stays(*now, split, layout, fold):
            continue
        found |= {layout.development(fold), layout.targets(fold)}
        for name in grid.supervised_vocabularies:
            if by_input_alone(f"supervision@{name}-{fold}"):
                found.add(layout.training_targets(name, fold))
        for name in grid.vocabularies:
            if by_input_alone(f"tokenize@{name}-{fold}") and not reasons.get(f"vocabulary@{name}-{fold}"):
                found.add(layout.development_tokens(name, fold))
    return found


def _development_stays(
    clips: ClipTable, replacing: TrainingLabelTable, params: SplitParams, layout: Layout, fold: str
) -> bool:
    """Return whether a manifest and training labels give a fold the development set that is on disk.

    Near-duplicates are those on disk: whether an added clip is one of a training clip is not known yet.
    """
    try:
        recorded = open_development(layout.development(fold), fold=fold)
        targets = open_targets(layout.targets(fold), recorded)
        index = INDEX.open(layout.spectrogram_index)
        copies = params.near_duplicates == "exclude"
        joined = join_copies(clips, open_duplicates(layout.duplicates)) if copies else clips
        roles = assign_roles(joined, fold, params)
    except SonolexError:
        return False
    for name in ("classes", "label_kind"):
        if targets.metadata[name] != clips.metadata[name]:
            return False
    if targets.metadata.get(SETTINGS, {}) != clips.metadata.get(SETTINGS, {}):
        return False
    keys = [clip.key for clip in building.manifest_clips(clips, 0, len(clips))]
    labels = [name for name in TARGETS.columns if name != "clip_id"]
    now = pa.table({"clip_id": clips["clip_id"], "role": pa.array(roles), "key": keys})
    columns = target_columns(clips.columns, now["role"], replacing.columns)
    now = pa.table(dict(zip(now.column_names, now.columns, strict=True)) | {name: columns[name] for name in labels})
    now = now.filter(pc.is_in(now["role"], pa.array(DEVELOPMENT_ROLES, pa.string())))
    failed = index.columns.filter(pc.equal(index["status"], "failed"))
    now = now.filter(pc.invert(pc.is_in(now["key"], failed["key"].combine_chunks())))
    own = recorded.columns.select(["clip_id", "role", "key"])
    for name in labels:
        own = own.append_column(name, targets[name])
    return bool(now.cast(own.schema).equals(own))
