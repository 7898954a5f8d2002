"""Settings that fit a corpus: strides from the length of its clips, epochs and sizes of networks from their number.

`recipes/base.yaml` fits the demo: clips of two seconds, and few epochs. A recipe for audio of one's own has `fit: true`;
then `sonolex compose` replaces these settings by the rules below, and writes numbers, which can be read and changed. What is
set by hand stays, and `fit=false` leaves all as the base and the recipe have it. docs/training.md has the rules as a table,
LOG.md what they were chosen by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from pipeline.corpora.base import AdapterParams
from pipeline.corpora.registry import CorpusParams, list_corpus
from pipeline.corpora.splitting import SplitParams, count_training_clips, folds_of
from pipeline.errors import CorpusError
from pipeline.params import validate_params
from pipeline.spectrogram.durations import sample_durations
from pipeline.spectrogram.settings import SpectrogramParams

FIT = "fit"  # key of a recipe, and of an override

_POSITIONS = 10  # of the median clip, at least: below, a transformer has no sequence to attend to
_SHORT = 1.5  # seconds; clips up to here are events such as words, whose order in time a full circular shift destroys
_SHIFT_OF_SHORT = 0.1
_MASKED_FRAMES, _MASKED_BANDS = 0.2, 0.19  # largest width of a mask, as fractions of the clip and of the bands
_WITHOUT_COPIES = 5_000  # training clips from which on texture statistics need no augmented copies, fourteen a clip
_EPOCHS, _FEWEST_EPOCHS, _MOST_EPOCHS = 1600, 5, 150


class _Size(NamedTuple):
    training_clips: int  # from which on the rest applies
    width: int
    depth: int
    heads: int
    batch_size: int


_SIZES = (_Size(0, 128, 2, 4, 16), _Size(5_000, 192, 4, 4, 32), _Size(100_000, 384, 6, 6, 64))


@dataclass(frozen=True)
class CorpusSize:
    """What settings are fitted to."""

    training_clips: int  # of the fold that has fewest
    seconds: float  # median length of a clip
    folds: tuple[str, ...]


def measure(document: Mapping[str, Any]) -> CorpusSize:
    """Return the size of the corpus of a params document. Raises CorpusError or ParamsError where it cannot be known."""
    params: AdapterParams = validate_params(CorpusParams, document["corpus"], "corpus")
    if not params.root.is_dir():
        raise CorpusError(f"corpus.root: expected the folder of the corpus, found none at {params.root}")
    split = validate_params(SplitParams, document["split"], "split")
    clips = list_corpus(params).table()
    durations = sample_durations(clips, params.root)
    if not len(durations):
        raise CorpusError(f"{params.root}: expected clips whose header can be read, found none")
    return CorpusSize(
        count_training_clips(clips["fold"], split, params.root),
        float(np.median(durations)),
        tuple(folds_of(clips["fold"], split, params.root)),
    )


def fitted(document: Mapping[str, Any], size: CorpusSize) -> CommentedMap:
    """Return the settings of a params document that a corpus of this size changes, as an overlay of it."""
    front_end = validate_params(SpectrogramParams, document["spectrogram"], "spectrogram").front_end
    frames = size.seconds * front_end.frame_rate
    models = {name: _model(section, frames, size) for name, section in document["models"].items()}
    return _mapping(
        experiment={"folds": _flow(list(size.folds))},
        train={
            "epochs": epochs_for(size.training_clips),
            "batch_size": _size_for(size.training_clips).batch_size,
            "augmentation": {
                "time_shift": _SHIFT_OF_SHORT if size.seconds <= _SHORT else 1.0,
                "frame_masks": {"width": _MASKED_FRAMES},
                "band_masks": {"width": _MASKED_BANDS},
            },
        },
        models={name: changes for name, changes in models.items() if changes},
    )


def epochs_for(training_clips: int) -> int:
    """Return the epochs for so many training clips: more clips need fewer epochs, and more steps."""
    return int(np.clip(round(_EPOCHS / max(training_clips, 1) ** 0.5), _FEWEST_EPOCHS, _MOST_EPOCHS))


def shorten(strides: Sequence[int], frames: float) -> list[int]:
    """Return strides over time, halved one at a time until a clip of so many frames has enough positions.

    The largest is halved first, and the last of those that are as large: the first layers are the ones that cost time.
    """
    strides = list(strides)
    while np.prod(strides) > 1 and frames / np.prod(strides) < _POSITIONS:
        largest = max(strides)
        place = len(strides) - 1 - strides[::-1].index(largest)
        strides[place] = largest // 2
    return strides


def _model(section: Mapping[str, Any], frames: float, size: CorpusSize) -> dict[str, Any]:
    """Return what changes in a section of `models`."""
    if section["kind"] == "network" and not section["pretrained"]:
        return _network(section, frames, size)
    if section["kind"] == "texture_statistics" and size.training_clips >= _WITHOUT_COPIES:
        return {"augmented_copies": dict.fromkeys(section["augmented_copies"], 0.0), "mixtures": 0}
    return {}


def _network(section: Mapping[str, Any], frames: float, size: CorpusSize) -> dict[str, Any]:
    """Return what changes in the section of a network."""
    changes: dict[str, Any] = {}
    for part in ("stem", "encoder"):
        if strides := section[part].get("strides"):
            changes[part] = {"strides": _shortened(strides, frames)}
    if section["stem"]["kind"] == "fixed_length":
        changes["stem"] = {"frames": max(1, round(frames))}
    if section["encoder"]["kind"] in ("transformer", "conformer"):
        own, fitting = section["encoder"], _size_for(size.training_clips)
        if fitting.width > own["width"]:
            larger = {"width": fitting.width, "depth": max(fitting.depth, own["depth"]), "heads": fitting.heads}
            changes["encoder"] = changes.get("encoder", {}) | larger
    return changes


def _shortened(strides: Sequence[Any], frames: float) -> CommentedSeq:
    """Return the strides of a section, of time alone or of time and bands, with those over time shortened."""
    if all(isinstance(stride, int) for stride in strides):
        return _flow(shorten(strides, frames))
    times = shorten([time for time, _ in strides], frames)
    return _flow([_flow([time, bands]) for time, (_, bands) in zip(times, strides, strict=True)])


def _size_for(training_clips: int) -> _Size:
    return [size for size in _SIZES if size.training_clips <= training_clips][-1]


def _flow(values: list[Any]) -> CommentedSeq:
    """Return a list that is written on one line."""
    sequence = CommentedSeq(values)
    sequence.fa.set_flow_style()
    return sequence


def _mapping(**sections: Any) -> CommentedMap:
    return CommentedMap(
        {key: _mapping(**value) if isinstance(value, dict) else value for key, value in sections.items()}
    )
