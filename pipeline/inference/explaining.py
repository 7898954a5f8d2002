"""Explanation of a prediction over the frames of a sound: attention or Grad-CAM, as in the report.

Of several models the mean of their maps, over those that have one (`pipeline/evaluation/explanation.py`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import SonolexError
from pipeline.evaluation.explanation import Explained, describe_map, open_explainer
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.inference.classifier import Classifier, Member
from pipeline.inference.sounds import MAX_SECONDS, read_file
from pipeline.spectrogram.storing import restore


class SoundMap(NamedTuple):
    """A map over the frames of a sound."""

    frames: np.ndarray  # (frame, mel) in the front end's units
    values: np.ndarray  # (frame, mel); see pipeline/evaluation/explanation.py
    label: str  # what the map is


def explained_members(classifier: Classifier) -> list[Member]:
    """Return the models that have a map. Raises SonolexError where none has."""
    found = [member for member in classifier.members if params_of(member.model).explanation]
    if not found:
        kinds = "; ".join(describe_model(member.model) for member in classifier.members)
        raise SonolexError(
            "--explain: expected a network that reads frames, with attention or a convolutional encoder, found "
            f"{kinds}; leave --explain out, or take another model"
        )
    return found


def explain_file(classifier: Classifier, path: Path, target: int) -> SoundMap:
    """Return the map of a class in a file. Raises BadClip where it can no longer be read."""
    frames = classifier.frames(read_file(path, **classifier.reading, max_seconds=MAX_SECONDS), str(path))
    explained: list[Explained] = []
    for member in explained_members(classifier):
        inputs = member.inputs([frames])
        explained.append(open_explainer(member.model, inputs).read(inputs.clip_ids[0], target))
    values = np.mean([one.over_spectrogram() for one in explained], axis=0)
    labels = dict.fromkeys(describe_map(one, classifier.classes) for one in explained)
    return SoundMap(restore(frames, classifier.metadata), values, " and ".join(labels))
