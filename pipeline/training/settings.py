"""The section `train`: how every neural model of an experiment is trained. docs/training.md says what each is for."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.params import Params
from pipeline.training.augmentation import AugmentationParams
from pipeline.training.averaging import AverageParams, averaged_epochs
from pipeline.training.optimiser import OptimiserParams
from pipeline.training.sampling import Sampling
from pipeline.training.schedules import ScheduleParams

Precision = Literal["float32", "bfloat16", "float16"]


class TrainParams(Params):
    epochs: PositiveInt
    sampling: Sampling  # of an epoch's clips: each once, or balanced by class with replacement
    batch_size: PositiveInt  # clips a step, over all processes together
    accumulate: PositiveInt  # parts that a process computes its clips of a batch in, one after the other
    learning_rate: PositiveFloat = Field(le=1)  # at the peak
    schedule: ScheduleParams
    optimiser: OptimiserParams
    gradient_clip: float | None = Field(gt=0, allow_inf_nan=False)  # largest norm; null = none
    label_smoothing: float = Field(ge=0, lt=1)
    average: AverageParams
    keep_epochs: list[PositiveInt]  # counted from 1, whose weights are stored too and predict together; empty = none
    early_stop_patience: NonNegativeInt  # epochs without a better validation loss; 0 = never stop
    precision: Precision  # of activations and products; weights and their gradients are float32
    compile: bool  # the model's arithmetic, by torch.compile
    recompute: bool  # activations of the encoder, in the backward pass, instead of keeping them
    patchout: float = Field(ge=0, lt=1)  # part of the positions that the encoder is not shown in training
    augmentation: AugmentationParams

    @model_validator(mode="after")
    def _batches_can_be_cut(self) -> "TrainParams":
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: expected at most batch_size {self.batch_size}, a clip a part, found {self.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _averaged_epochs_are_run(self) -> "TrainParams":
        averaged = averaged_epochs(self.average, self.epochs)
        if averaged and (averaged[0] < 1 or averaged[-1] > self.epochs):
            raise ValueError(
                f"average: expected epochs of the {self.epochs} that are run, found {averaged[0]} to {averaged[-1]}"
            )
        if averaged and self.early_stop_patience:
            raise ValueError(
                f"average.kind: expected none or ema while early_stop_patience is {self.early_stop_patience}, "
                f"found {self.average.kind}: a run that stops early may never reach those epochs"
            )
        return self

    @model_validator(mode="after")
    def _kept_epochs_are_run(self) -> "TrainParams":
        kept = self.keep_epochs
        if kept != sorted(set(kept)) or (kept and kept[-1] > self.epochs):
            raise ValueError(f"keep_epochs: expected rising numbers from 1 to epochs {self.epochs}, found {kept}")
        if kept and self.early_stop_patience:
            raise ValueError(
                f"keep_epochs: expected none while early_stop_patience is {self.early_stop_patience}, found {kept}: a run "
                "that stops early may never reach those epochs"
            )
        return self
