"""Parts of a corpus: some of its classes, a share or a number of its clips, and test clips held out from training clips.

Draws depend on the seed and on a clip's group alone: every group has one fixed position in [0, 1), and a part holds the
groups below a threshold. So a larger part holds the smaller one, added clips move no other, and a group is never divided.

Conventions: `labels` is (clip,) lists of class names; masks are (clip,) bool.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.seeding import named_seed


def positions_of(groups: pa.ChunkedArray, seed: int, name: str) -> np.ndarray:
    """Return the position of each clip's group in the draw `name`: (clip,) float64 in [0, 1), uniform over groups."""
    unique = pc.unique(groups)
    drawn = np.array([named_seed(seed, name, group) for group in unique.to_pylist()], dtype=np.float64) / 2.0**63
    rows = pc.index_in(groups, unique).to_numpy()
    return np.asarray(drawn[rows], dtype=np.float64)


def part_of(positions: np.ndarray, there: np.ndarray, part: float | int) -> np.ndarray:
    """Return the mask of a part: a share below 1 of all clips, or the number of clips with audio, as `there` says.

    Of a number, clips without audio that are drawn before the last one are in the part too.
    """
    if isinstance(part, float):
        return positions < part
    with_audio = np.sort(positions[there])
    return positions <= with_audio[part - 1] if part < len(with_audio) else np.ones(len(positions), dtype=bool)


def with_classes(clips: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Return the clips that have one of the classes, each with these labels alone."""
    labels = clips["labels"].combine_chunks()
    owners, names = pc.list_parent_indices(labels).to_numpy(), labels.flatten()
    kept = pc.is_in(names, pa.array(classes, pa.string())).to_numpy(zero_copy_only=False)
    counts = np.bincount(owners[kept], minlength=len(clips))
    ends = np.concatenate([[0], np.cumsum(counts)])
    own = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), names.filter(pa.array(kept)))
    clips = clips.set_column(clips.column_names.index("labels"), "labels", own)
    return clips.filter(pa.array(counts > 0))


def common_classes(clips: pa.Table, classes: Sequence[str], masks: Sequence[np.ndarray], minimum: int) -> list[str]:
    """Return the classes, in their order, that have at least `minimum` clips in each of the masks."""
    labels = clips["labels"].combine_chunks()
    owners = pc.list_parent_indices(labels).to_numpy()
    codes = pc.fill_null(pc.index_in(labels.flatten(), pa.array(classes, pa.string())), len(classes)).to_numpy()
    counts = [np.bincount(codes[mask[owners]], minlength=len(classes) + 1) for mask in masks]
    fewest = np.min(counts, axis=0)[:-1]  # without unknown labels, which the manifest refuses
    return [name for name, count in zip(classes, fewest.tolist(), strict=True) if count >= minimum]
