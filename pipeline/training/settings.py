"""The sections `train` and `pretrain`: settings of training networks. docs/training.md explains each."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.params import Params, validate_params
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.averaging import AverageParams, averaged_epochs
from pipeline.training.epoch_choice import EpochMetric
from pipeline.training.freezing import FreezeParams
from pipeline.training.lora import LoraParams
from pipeline.training.loss_settings import LossParams
from pipeline.training.optimiser import OptimiserParams, RateParams
from pipeline.training.sampling import Sampling
from pipeline.training.schedules import PlateauParams, ScheduleParams

NO_FREEZING = {"stages": [], "batch_norm": "frozen"}
RATES_ALIKE = {"input": 1.0, "stem": 1.0, "encoder": 1.0, "head": 1.0, "layer_decay": 1.0}

Precision = Literal["float32", "bfloat16", "float16"]


class TrainParams(Params):
    epochs: PositiveInt
    sampling: Sampling  # of an epoch's clips: each once, or balanced by class with replacement
    batch_size: PositiveInt  # clips per step, over all processes together
    accumulate: PositiveInt  # micro-batches per batch and process, computed one after the other
    learning_rate: PositiveFloat = Field(le=1)  # at the peak
    schedule: ScheduleParams
    optimiser: OptimiserParams
    gradient_clip: float | None = Field(gt=0, allow_inf_nan=False)  # largest norm; null = none
    loss: LossParams
    label_smoothing: float = Field(ge=0, lt=1)
    average: AverageParams
    checkpoint_ensemble: list[PositiveInt]  # epochs (from 1) whose checkpoints predict together; empty = none
    early_stop_patience: NonNegativeInt  # epochs without a better validation metric; 0 = never stop
    num_threads: PositiveInt  # of the CPU, in each process; results depend on it, as does the time
    precision: Precision  # of activations and matrix products; weights and gradients are float32
    compile: bool  # the model's arithmetic, by torch.compile
    activation_checkpointing: (
        bool  # compute the encoder's activations again in the backward pass, instead of keeping them
    )
    patchout: float = Field(ge=0, lt=1)  # fraction of the positions dropped before the encoder in training
    augmentation: AugmentationParams
    gradient_flow: bool  # write the gradients of every layer, in a few epochs, beside the curves
    epoch_metric: EpochMetric  # of validation clips, by which epochs are compared: early stopping, best epoch, plateaus
    keep_best: bool  # store the weights of the best epoch, also where training does not stop early
    freeze: FreezeParams
    rates: RateParams  # factors on the learning rate, by part of the network
    lora: LoraParams | None  # adapters that are trained in place of the encoder's weights; null = none

    @model_validator(mode="after")
    def _batches_can_be_cut(self) -> "TrainParams":
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: expected at most batch_size {self.batch_size}, a clip per micro-batch, found {self.accumulate}"
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

    @property
    def chooses_epoch(self) -> bool:
        """Whether the best epoch by the validation metric is stored, and not the last."""
        return self.keep_best or self.early_stop_patience > 0

    @property
    def validated_setting(self) -> tuple[str, str, str] | None:
        """The first setting that needs validation clips: key, value that needs none, value found; None = none does."""
        if self.early_stop_patience:
            return "early_stop_patience", "0", str(self.early_stop_patience)
        if self.keep_best:
            return "keep_best", "false", "true"
        return _validated_schedule(self.schedule)

    @model_validator(mode="after")
    def _stages_fill_the_run(self) -> "TrainParams":
        self.freeze.require_epochs(self.epochs)
        return self

    @model_validator(mode="after")
    def _kept_epochs_are_run(self) -> "TrainParams":
        kept = self.checkpoint_ensemble
        if kept != sorted(set(kept)) or (kept and kept[-1] > self.epochs):
            raise ValueError(
                f"checkpoint_ensemble: expected rising numbers from 1 to epochs {self.epochs}, found {kept}"
            )
        if kept and self.early_stop_patience:
            raise ValueError(
                f"checkpoint_ensemble: expected none while early_stop_patience is {self.early_stop_patience}, found {kept}: "
                "a run that stops early may never reach those epochs"
            )
        return self


class PretrainParams(Params):
    """The section `pretrain`: masked-token pretraining of the models of `experiment.pretrained_models`."""

    epochs: PositiveInt
    batch_size: PositiveInt  # clips per step, over all processes together
    learning_rate: PositiveFloat = Field(le=1)  # at the peak
    schedule: ScheduleParams
    mask_share: float = Field(gt=0, lt=1)  # fraction of the tokens that are masked
    mask_span: PositiveInt  # length of a masked span, in tokens

    @property
    def validated_setting(self) -> tuple[str, str, str] | None:
        """The setting that needs validation clips, as in `TrainParams`."""
        return _validated_schedule(self.schedule)

    def settings(self, train: TrainParams) -> TrainParams:
        """Return the settings of the training loop: these values, and those of `train` for all other keys.

        Raises ParamsError where the two are inconsistent.
        """
        own = self.model_dump(include={"epochs", "batch_size", "learning_rate", "schedule"})
        other = {"sampling": "shuffled", "early_stop_patience": 0, "patchout": 0.0}  # for classification only
        other |= {"gradient_flow": False, "checkpoint_ensemble": [], "loss": {"kind": "auto"}}
        other |= {"epoch_metric": "loss", "keep_best": False, "freeze": NO_FREEZING, "rates": RATES_ALIKE, "lora": None}
        return validate_params(TrainParams, train.model_dump() | other | own, "pretrain")


def _validated_schedule(schedule: ScheduleParams) -> tuple[str, str, str] | None:
    if isinstance(schedule, PlateauParams):
        return "schedule.kind", "cosine, constant, steps or one_cycle", "plateau"
    return None
