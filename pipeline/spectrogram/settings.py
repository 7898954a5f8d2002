"""The section `spectrogram`: front end, storage of its values, and sizes of shards."""

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from pipeline.artifacts.spectrogram import Mix, SpectrogramMetadata
from pipeline.params import Params
from pipeline.spectrogram.copies import Copy
from pipeline.spectrogram.registry import FrontEndParams, build_front_end


class ClipsPerShard(Params):
    """Sizes of shards in clips; see `pipeline/execution/shards.py`."""

    minimum: PositiveInt
    average: PositiveInt
    maximum: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.minimum <= self.average <= self.maximum:
            raise ValueError(f"minimum {self.minimum} <= average {self.average} <= maximum {self.maximum} must hold")
        return self


class ValueRange(Params):
    """Range of values that the 256 steps of uint8 span; values outside are clipped and counted."""

    low: float  # in the units of the front end
    high: float  # in the units of the front end

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} < high {self.high} must hold")
        return self


class SpectrogramParams(Params):
    """Settings of the stage spectrogram."""

    front_end: FrontEndParams
    mix: Mix
    silence: Literal["fail", "keep"]  # what becomes of a silent clip
    dtype: Literal["float32", "float16", "int16", "uint8"]  # as stored; int16 = samples of a waveform
    uint8_range: ValueRange  # read when dtype is uint8
    clips_per_shard: ClipsPerShard
    copies: list[Copy]  # of each clip, with another speed or pitch, for training; empty = none

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        names = [copy.name for copy in self.copies]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"copies: expected each copy once, found {', '.join(repeated)} several times; keep one of each"
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype == "uint8" and not self.front_end.is_log_mel:
            raise ValueError(
                f"dtype: expected float16 or float32 with front_end.kind {self.front_end.kind}, whose values have no common "
                "range, found uint8"
            )
        if self.dtype == "int16" and not self.front_end.has_samples:
            raise ValueError(
                f"dtype: expected float16 or float32 with front_end.kind {self.front_end.kind}, found int16, which is for "
                "samples, of front_end.kind waveform"
            )
        return self

    def recorded(self, copy: Copy | None = None) -> dict[str, object]:
        """Return the settings that an artifact of clips' frames records, or that of a copy."""
        settings = self.model_dump(mode="json", exclude={"clips_per_shard", "copies"})
        return settings if copy is None else settings | {"copies": [other.settings for other in self.copies]}

    @property
    def metadata(self) -> SpectrogramMetadata:
        """Return the metadata of the artifact: the front end's, and that of the stored values."""
        scale, offset = 1.0, 0.0
        if self.dtype == "uint8":
            offset, scale = self.uint8_range.low, (self.uint8_range.high - self.uint8_range.low) / 255
        if self.dtype == "int16":
            scale = 1 / 32768
        metadata: SpectrogramMetadata = {
            **build_front_end(self.front_end).metadata, "dtype": self.dtype, "scale": scale, "offset": offset
        }  # fmt: skip
        if self.mix != "mean":
            metadata["mix"] = self.mix
        if self.silence == "keep":
            metadata["silence"] = "keep"
        return metadata
