"""Texture-statistics classifier: kernel ridge regression on augmented clips.

Features: `pipeline/models/baselines/texture_statistics.py`; classifiers: `pipeline/models/baselines/kernel_classifier.py`.
Training rows are the clips, their augmented copies, and same-class mixtures, of two clips with the same labels. A clip's
logits are the means over its copies. With `input: {kind: tokens}` frames are decoded from tokens, so that the difference in
accuracy shows the loss of the vocabulary.

Conventions: frames (frame, mel) float32 in the front end's units.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from pipeline.artifacts.model import Reads
from pipeline.errors import ParamsError
from pipeline.execution.progress import progress
from pipeline.models.base import FrontEndValues, ModelParams, VocabularySection
from pipeline.models.baselines.base import Baseline, Setting, Weights
from pipeline.models.baselines.kernel_classifier import fit_one_vs_rest, least_squares, require_room, score
from pipeline.models.baselines.texture_inputs import TextureInputParams
from pipeline.models.baselines.texture_statistics import (
    CopiesParams,
    augmented_copies,
    extract_features,
    log_unit_of,
    mixture,
    silence_floor,
)
from pipeline.models.registry import TEXTURE_INPUTS
from pipeline.seeding import named_seed

WHERE = "models.*.kind texture_statistics"  # of settings, for messages
_OTHER_FRAMES = "texture statistics need log-mel frames in one channel: use front end kaldi or mel, or frame_statistics"


class TextureStatisticsParams(ModelParams):
    kind: Literal["texture_statistics"]
    input: Annotated[TextureInputParams, TEXTURE_INPUTS.params]
    floor: float = Field(ge=0, lt=1)  # quantile of the training frames' values: the floor, below which is silence
    augmented_copies: CopiesParams
    mixtures: NonNegativeInt  # per training clip, each with another clip of the same labels
    mixture_gain: NonNegativeFloat  # natural logarithm of power, largest level difference of the two clips
    ridge: PositiveFloat  # scikit-learn's alpha, the strength of regularisation
    kernel_width: PositiveFloat  # kernel exp(-|x - y|^2 * kernel_width / number of features)

    @property
    def reads(self) -> Reads:
        return TEXTURE_INPUTS[self.input.kind].reads

    def require_front_end(self, front_end: FrontEndValues) -> None:
        if not front_end.is_log_mel:
            raise ValueError(_OTHER_FRAMES)

    @property
    def rows_per_clip(self) -> int:
        """Training rows of a clip: its augmented copies, itself included, and its mixtures."""
        return self.augmented_copies.count + self.mixtures

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        self.input.require_vocabulary(vocabulary)

    def require_room(self, num_clips: int) -> None:
        require_room(num_clips, self.rows_per_clip, WHERE)


class TextureStatistics(Baseline):
    Params = TextureStatisticsParams
    params: TextureStatisticsParams

    def __init__(self, params: TextureStatisticsParams) -> None:
        super().__init__(params)
        self._input = TEXTURE_INPUTS[params.input.kind]()

    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Return the arrays of `fit_one_vs_rest` and of the input, and `floor`, `frame_rate` and `log_unit`, (1,) each.

        The floor is in ln(power), the frame rate in Hz; the unit is one unit of the front end in ln(power). Mixtures are
        drawn with the seed.
        """
        params = self.params
        params.require_room(len(inputs))
        decoding = self._input.fit(setting)
        clips = self._input.frames(decoding, inputs)
        log_unit = log_unit_of(setting.front_end)
        if log_unit is None:
            raise ParamsError(f"{WHERE}: {_OTHER_FRAMES}, found {setting.front_end['front_end']}")
        weights = {
            "floor": np.array([silence_floor(clips, params.floor) * log_unit], np.float32),
            "frame_rate": np.array([setting.front_end["frame_rate"]], np.float32),
            "log_unit": np.array([log_unit], np.float32),
        }
        features, numbers = self._training_rows(weights, clips, targets, setting.seed)
        classifiers = fit_one_vs_rest(
            features,
            numbers,
            targets,
            least_squares(params.ridge),
            kernel_width=params.kernel_width,
            label_kind=setting.label_kind,
            seed=setting.seed,
        )
        return decoding | classifiers | weights

    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits, each the mean over the clip's copies."""
        clips = self._input.frames(weights, inputs)
        rows = np.concatenate([np.stack(self._features_of_copies(weights, frames)) for frames in clips])
        logits = score(weights, rows, kernel_width=self.params.kernel_width)
        return np.asarray(logits.reshape(len(clips), -1, logits.shape[1]).mean(axis=1), dtype=np.float32)

    def _training_rows(
        self, weights: Weights, clips: Sequence[np.ndarray], targets: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the features (row, feature) float32 of all training rows, and the clip (row,) of each."""
        num_rows = len(clips) * self.params.rows_per_clip
        features, numbers = np.empty((0, 0), np.float32), np.empty(num_rows, np.int64)
        with progress("texture statistics", num_rows, unit="rows") as advance:
            for row, (number, values) in enumerate(self._each_row(weights, clips, targets, seed)):
                if row == 0:
                    features = np.empty((num_rows, len(values)), np.float32)
                features[row], numbers[row] = values, number
                advance(1)
        return features, numbers

    def _each_row(
        self, weights: Weights, clips: Sequence[np.ndarray], targets: np.ndarray, seed: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the clip and the features of every training row: copies of all clips, then mixtures."""
        for number, frames in enumerate(clips):
            yield from ((number, values) for values in self._features_of_copies(weights, frames))
        generator = np.random.default_rng(named_seed(seed, "mixtures"))
        partners, log_unit = _same_labels(targets), float(weights["log_unit"][0])
        for _ in range(self.params.mixtures):
            for number, frames in enumerate(clips):
                other = clips[int(generator.choice(partners[number]))]
                mixed = mixture(frames * log_unit, other * log_unit, generator, gain=self.params.mixture_gain)
                yield number, _features(weights, mixed)

    def _features_of_copies(self, weights: Weights, frames: np.ndarray) -> list[np.ndarray]:
        copies = augmented_copies(frames * weights["log_unit"][0], self.params.augmented_copies)
        return [_features(weights, copy) for copy in copies]


def _features(weights: Weights, frames: np.ndarray) -> np.ndarray:
    return extract_features(frames, floor=float(weights["floor"][0]), frame_rate=float(weights["frame_rate"][0]))


def _same_labels(targets: np.ndarray) -> list[np.ndarray]:
    """Return, for each clip, the clips with the same labels and the same unknown ones, itself included."""
    _, groups = np.unique(np.where(np.isnan(targets), 2, targets > 0.5), axis=0, return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    return [members[group] for group in groups.ravel().tolist()]
