"""Parts of AudioSet: some classes, a share or number of each set's clips, and test clips held out of training sets.

Conventions: `clips` has the columns of `CLIP_COLUMNS`, `set`, the set of each clip, and `found`, whether it has audio.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline.corpora.audioset_files import SetName
from pipeline.corpora.base import AdapterParams, reject
from pipeline.corpora.parts import common_classes, part_of, positions_of, with_classes
from pipeline.params import FilePath

Part = Annotated[float, Field(gt=0, lt=1)] | PositiveInt  # a share, or a number of clips


class PartParams(AdapterParams):
    """Keys of the section `corpus` that choose a part of AudioSet."""

    class_table: FilePath  # index, mid, display_name
    classes: list[str] | None  # names or ids of those that are kept, with their clips; null = all of the class table
    min_clips: NonNegativeInt  # classes with fewer clips with audio, for training or for test, are left out
    parts: dict[SetName, Part | None]  # share (below 1) or number of the set's clips; null or not named = all
    test_share: Annotated[float, Field(ge=0, lt=1)]  # of the training clips, tested where there is no evaluation set
    seed: NonNegativeInt  # of parts and test_share

    def _choosing(self) -> dict[str, object]:
        """Return the settings that choose clips; those of a part only where there is one, so that all has one identity."""
        chosen = super()._choosing()
        parts = {name: part for name, part in self.parts.items() if part is not None}
        chosen["parts"] = parts
        for key, is_whole in {
            "classes": self.classes is None,
            "min_clips": not self.min_clips,
            "parts": not parts,
            "test_share": not self.test_share,
            "seed": not (parts or self.test_share),
        }.items():
            if is_whole:
                del chosen[key]
        return chosen


def choose_part(
    params: PartParams, clips: pa.Table, mids: Sequence[str], names: Sequence[str]
) -> tuple[pa.Table, Sequence[str]]:
    """Return the part of the clips that the params choose, and its classes in the order of the class table."""
    if params.classes is not None:
        clips, names = _of_classes(params, clips, mids, names)
    if any(part is not None for part in params.parts.values()):
        clips = clips.filter(pa.array(_drawn(params, clips)))
    if params.test_share:
        held_out = positions_of(clips["group"], params.seed, "test") < params.test_share
        folds = pc.if_else(pa.array(held_out), "test", clips["fold"])
        clips = clips.set_column(clips.column_names.index("fold"), "fold", folds)
    if params.min_clips and len(clips):
        there = _mask(clips["found"])
        roles = [_mask(pc.equal(clips["fold"], role)) & there for role in ("train", "test")]
        names = common_classes(clips, names, [role for role in roles if role.any()], params.min_clips)
        clips = with_classes(clips, names)
    return clips, names


def _of_classes(
    params: PartParams, clips: pa.Table, mids: Sequence[str], names: Sequence[str]
) -> tuple[pa.Table, Sequence[str]]:
    asked = set(params.classes or ())
    unknown = sorted(asked - set(mids) - set(names))
    reject(f"corpus.classes, where {params.class_table} names the classes", {"unknown classes": unknown})
    kept = [name for mid, name in zip(mids, names, strict=True) if mid in asked or name in asked]
    return with_classes(clips, kept), kept


def _drawn(params: PartParams, clips: pa.Table) -> np.ndarray:
    """Return the mask of the clips that `parts` draws, (clip,) bool."""
    positions, there = positions_of(clips["group"], params.seed, "part"), _mask(clips["found"])
    mask = np.ones(len(clips), dtype=bool)
    for name, part in params.parts.items():
        own = _mask(pc.equal(clips["set"], name))
        if part is not None and own.any():
            mask[own] = part_of(positions[own], there[own], part)
    return mask


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.to_numpy(), dtype=bool)
