"""The section `train.augmentation`: what is done to the clips of a batch. docs/training.md explains each setting.

Every part has a probability, with which a clip undergoes it. At 0 it is the identity, and draws no random numbers.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.artifacts.settings import leaves
from pipeline.params import Params, SharedFolder

NoiseColour = Literal["white", "pink", "brown", "blue", "violet"]

Fraction = Field(ge=0, le=1)


def _rising(ends: list[float]) -> list[float]:
    low, high = ends
    if low > high:
        raise ValueError(f"expected the lower end first, as [{high}, {low}]")
    return ends


# Ends of a uniform distribution, lower one first.
Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]
PositiveRange = Annotated[
    list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2), AfterValidator(_rising)
]
FractionRange = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_rising)
]


class MasksParams(Params):
    count: NonNegativeInt  # spans per clip
    # Each span covers 0 to this many frames or bands of the batch; a fraction below 1 is one of the clip's own length.
    width: NonNegativeInt | Annotated[float, Field(gt=0, lt=1)]


class RandomParams(Params):
    """A change of one number, drawn for each clip."""

    probability: float = Fraction
    range: Range  # of the number, uniform; its unit is that of the setting


class SpeedParams(Params):
    probability: float = Fraction
    range: PositiveRange  # factors of the playback speed


class EqualiserParams(RandomParams):
    bands: int = Field(ge=2, le=64)  # gains over the mel bands, evenly spaced, linear in between


class BackgroundParams(Params):
    probability: float = Fraction
    snr: Range  # dB
    folder: SharedFolder | None  # of sounds; null = none

    @model_validator(mode="after")
    def _has_a_folder(self) -> "BackgroundParams":
        if self.probability and self.folder is None:
            raise ValueError(
                f"folder: expected a folder of sounds with probability {self.probability}, found null; name one, or set "
                "probability to 0"
            )
        return self


class ColouredNoiseParams(Params):
    probability: float = Fraction
    snr: Range  # dB
    colours: list[NoiseColour] = Field(min_length=1)  # that are drawn from


class ErasingParams(Params):
    probability: float = Fraction
    area: FractionRange  # of the clip's frames and bands
    aspect: PositiveRange  # fraction of the frames over fraction of the bands


class MixStyleParams(Params):
    probability: float = Fraction
    alpha: float = Field(gt=0, le=1000)  # of Beta(alpha, alpha), the weight of the clip's own statistics


class PartnersParams(Params):
    """Several clips that become one."""

    probability: float = Fraction
    num_clips: Annotated[
        list[Annotated[int, Field(ge=2, le=16)]], Field(min_length=2, max_length=2)
    ]  # the clip included
    gain: Range  # dB, of each partner
    random_start: bool
    most_labels: PositiveInt | None  # of the result; null = any number
    same_group: bool  # partners have the clip's group
    absent_labels: bool  # partners have no label that is there already

    @model_validator(mode="after")
    def _counts_rise(self) -> "PartnersParams":
        low, high = self.num_clips
        if low > high:
            raise ValueError(f"num_clips: expected the smaller number first, as [{high}, {low}], found [{low}, {high}]")
        return self


class ConcatenationParams(PartnersParams):
    whole: bool  # clips from end to end; false = the clip's length is divided among excerpts of them


# Settings that only models take that read log-mel frames, or tokens of augmented frames; others ignore them.
OF_FRAMES = (
    "copies", "speed", "pitch", "band_shift", "gain", "tilt", "equaliser", "background", "coloured_noise", "sum_clips",
    "mixup_domain", "freq_mixstyle",
)  # fmt: skip
RETOKENIZE = "retokenize"  # with which models that read tokens take them too


# Settings that act on bands or powers of frames, or on their order, and have no meaning for frames of samples.
_NOT_OF_SAMPLES = (
    "time_stretch", "reversal", "speed.probability", "pitch.probability", "band_shift.probability", "gain.probability",
    "tilt.probability", "equaliser.probability", "background.probability", "coloured_noise.probability",
    "sum_clips.probability", "freq_mixstyle.probability", "band_masks.count", "erasing.probability",
)  # fmt: skip


class AugmentationParams(Params):
    time_shift: float = Fraction  # largest shift as a fraction of the clip
    time_stretch: float = Fraction  # largest change of tempo, as a natural logarithm: 0.1 reads 10 % faster or slower
    copies: float = Fraction  # probability, per epoch, that a clip is read as one of its copies of `spectrogram.copies`
    reversal: float = Fraction  # probability that a clip is read backwards
    speed: SpeedParams  # of playback: tempo and pitch together, a factor
    pitch: RandomParams  # semitones
    band_shift: RandomParams  # mel bands, upwards
    gain: RandomParams  # dB
    tilt: RandomParams  # dB per octave above 1 kHz, and less as much below it
    equaliser: EqualiserParams  # dB
    background: BackgroundParams
    coloured_noise: ColouredNoiseParams
    sum_clips: PartnersParams
    concatenate_clips: ConcatenationParams
    mixup_probability: float = Fraction
    mixup_alpha: float = Field(gt=0, le=1000)  # of Beta(alpha, alpha)
    mixup_domain: Literal["log", "power"]  # power: powers are added as in mixed waveforms, for models that read frames
    mixup_partners: Literal["batch", "all"]  # all: drawn uniformly from all training clips, however these are sampled
    freq_mixstyle: MixStyleParams
    retokenize: bool  # models that read tokens train on tokens of augmented frames; false = on the stored tokens
    token_noise: float = Fraction  # probability that a token becomes one of its nearest tokens
    frame_masks: MasksParams  # for tokens these become the mask token, before the embedding
    band_masks: MasksParams
    erasing: ErasingParams
    noise: float = Fraction  # largest noise of a clip, uniform from 0, in units of the normalised features

    @property
    def hiding(self) -> list[str]:
        """Return the settings in use that hide parts of clips, or change the styles of bands."""
        used = {
            "frame_masks": self.frame_masks.count,
            "band_masks": self.band_masks.count,
            "erasing": self.erasing.probability,
            "freq_mixstyle": self.freq_mixstyle.probability,
        }
        return [name for name, strength in used.items() if strength]

    @property
    def used_of_frames(self) -> list[str]:
        """Return the settings in use that only models take that read frames, or tokens of augmented frames."""
        values = dict(leaves(self.model_dump()))
        used = [
            name for name in OF_FRAMES if name != "mixup_domain" and values.get(f"{name}.probability", values.get(name))
        ]
        power = self.mixup_domain == "power" and self.mixup_probability
        return [*used, "mixup_domain: power"] if power else used

    @property
    def lengthening(self) -> int:
        """Return the factor by which clips may become longer."""
        joined = self.concatenate_clips
        return joined.num_clips[1] if joined.probability and joined.whole else 1

    def unfit_for_samples(self) -> list[tuple[str, object, object]]:
        """Return key, value without effect and value of the settings that are on and have no meaning for samples."""
        values = dict(leaves(self.model_dump()))
        found: list[tuple[str, object, object]] = [(key, 0, values[key]) for key in _NOT_OF_SAMPLES if values[key]]
        if self.mixup_probability and self.mixup_domain == "power":
            found.append(("mixup_domain", "log, which adds the samples themselves", self.mixup_domain))
        return found

    @model_validator(mode="after")
    def _a_clip_has_one_mixture(self) -> "AugmentationParams":
        both = self.sum_clips.probability + self.concatenate_clips.probability
        if both > 1:
            raise ValueError(
                "sum_clips.probability + concatenate_clips.probability: expected at most 1, since a clip is summed, "
                f"concatenated or neither, found {both:g}"
            )
        return self
