"""Stages of freezing: which groups of weights are trained in an epoch, the others keep their bits.

A frozen weight has no gradient, so the optimiser leaves it as it is, weight decay included, and the backward pass computes
nothing for it. Batch norms whose weights are frozen use their running statistics and keep them, or update them, as
`batch_norm` says. Dropout and stochastic depth of frozen parts stay on.

Conventions: epochs count from 0; names of groups are those of `pipeline/models/weight_groups.py`.
"""

from typing import Literal

from pydantic import PositiveInt, field_validator, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import ParamsError
from pipeline.models.network import Network
from pipeline.models.weight_groups import PARTS, WeightGroup, spell_groups, weight_groups
from pipeline.params import Params


class FreezeStage(Params):
    """An entry of `freeze.stages`: what is trained in its epochs."""

    epochs: PositiveInt | None = None  # null or left out = those that remain, in the last stage
    train: Literal["all"] | list[str]  # groups of weights

    @property
    def names(self) -> list[str]:
        """Names of the groups that are trained; of all, their parts."""
        return [*PARTS] if self.train == "all" else self.train

    @field_validator("train", mode="before")
    @classmethod
    def _all_or_names(cls, train: object) -> object:
        if train != "all" and not isinstance(train, list):
            raise ValueError("expected `all` or a list of groups, such as [head]")
        return train

    @model_validator(mode="after")
    def _something_is_trained(self) -> "FreezeStage":
        if not self.train:
            raise ValueError("train: expected `all` or names of groups such as head, found none: everything is frozen")
        return self


class FreezeParams(Params):
    """Section `train.freeze`; without stages all weights are trained in all epochs."""

    stages: list[FreezeStage]
    batch_norm: Literal["frozen", "updated"]  # running statistics of batch norms whose weights are frozen

    @model_validator(mode="after")
    def _last_stage_alone_is_open(self) -> "FreezeParams":
        for number, stage in enumerate(self.stages[:-1]):
            if stage.epochs is None:
                raise ValueError(
                    f"stages.{number}.epochs: expected a number, which only the last stage may leave out, found none"
                )
        return self

    def require_epochs(self, num_epochs: int) -> None:
        """Raise ValueError unless the stages fill a run of so many epochs."""
        if not self.stages:
            return
        counted = sum(stage.epochs or 0 for stage in self.stages)
        if self.stages[-1].epochs is None and counted >= num_epochs:
            raise ValueError(
                f"freeze.stages: expected less than epochs {num_epochs} before the last stage, found {counted}"
            )
        if self.stages[-1].epochs is not None and counted != num_epochs:
            raise ValueError(
                f"freeze.stages: expected epochs {num_epochs} in all, found {counted}; leave `epochs` of the last stage "
                "out, which then takes those that remain"
            )

    def stage_of(self, epoch: int) -> FreezeStage | None:
        """Return the stage of an epoch; None where all weights are trained."""
        end = 0
        for stage in self.stages:
            end += stage.epochs or 0
            if epoch < end or stage.epochs is None:
                return stage
        return None


class Freezing:
    """Switch of a model's weights between frozen and trained."""

    def __init__(self, model: nn.Module, params: FreezeParams) -> None:
        """Raises ParamsError for a stage that names no group of the network, or trains nothing."""
        self._model, self._params = model, params
        self._trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        self._groups: dict[str, WeightGroup] = {}
        if params.stages:
            assert isinstance(model, Network)  # pretraining has no stages, see `PretrainParams.settings`
            self._groups = weight_groups(model)
            require_groups(self._groups, params, "train.freeze")
            for number, stage in enumerate(params.stages):
                if not any(self._trains(stage, name) for name in self._trainable):
                    raise ParamsError(
                        f"train.freeze.stages.{number}.train: expected weights that are trained, found none in "
                        f"{stage.train}: everything is frozen; add head"
                    )

    def begin_epoch(self, epoch: int) -> None:
        """Set a model to training mode, with the weights of the epoch's stage trained."""
        self._model.train()
        stage = self._params.stage_of(epoch)
        for name, weight in self._model.named_parameters():
            weight.requires_grad_(name in self._trainable and self._trains(stage, name))
        if self._params.batch_norm == "updated":
            return
        for name, module in self._model.named_modules():
            if isinstance(module, _BatchNorm) and not self._trains_batch_norm(stage, name, module):
                module.eval()

    def _trains(self, stage: FreezeStage | None, name: str) -> bool:
        return stage is None or stage.train == "all" or any(self._groups[group].holds(name) for group in stage.names)

    def _trains_batch_norm(self, stage: FreezeStage | None, name: str, module: _BatchNorm) -> bool:
        own = [f"{name}.{weight}" for weight, _ in module.named_parameters()]
        return self._trains(stage, name) and (not own or not self._trainable.isdisjoint(own))


def require_groups(groups: dict[str, WeightGroup], params: FreezeParams, where: str) -> None:
    """Raise ParamsError for a stage that names a group which is none of these."""
    for number, stage in enumerate(params.stages):
        for name in stage.train if stage.train != "all" else ():
            if name not in groups:
                raise ParamsError(
                    f"{where}.stages.{number}.train: expected groups of this network's weights, found {name}; it has: "
                    f"{spell_groups(groups)}"
                )
