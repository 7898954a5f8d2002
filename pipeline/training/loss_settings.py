"""Settings of the classification loss, `train.loss`, and the label kinds that each loss fits. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from pipeline.artifacts.clips import LabelKind, Link
from pipeline.artifacts.files import file_digest
from pipeline.errors import ParamsError
from pipeline.params import FilePath, Params

PosWeight = Literal["none", "balanced"]  # of positive targets: 1, or negatives / positives of the class in training
_Focusing = Annotated[float, Field(ge=0, le=100)]  # exponent


class FamilyParams(Params):
    """Additional term: binary cross entropy of families of classes."""

    weight: PositiveFloat  # of the term, relative to the loss of the classes
    groups: FilePath  # table with a row for each class: class, family


class AutoParams(Params):
    kind: Literal["auto"]  # cross entropy (one label a clip), or binary cross entropy (many)


class CrossEntropyParams(Params):
    kind: Literal["cross_entropy"]


class BceParams(Params):
    kind: Literal["bce"]
    pos_weight: PosWeight
    families: FamilyParams | None


class FocalParams(Params):
    kind: Literal["focal"]
    gamma: _Focusing  # 0 = binary cross entropy
    pos_weight: PosWeight
    families: FamilyParams | None


class AsymmetricParams(Params):
    kind: Literal["asymmetric"]
    gamma_positive: _Focusing
    gamma_negative: _Focusing
    margin: NonNegativeFloat = Field(lt=1)  # that probabilities of negatives are lowered by; 0 = none
    families: FamilyParams | None


LossParams = Annotated[
    AutoParams | CrossEntropyParams | BceParams | FocalParams | AsymmetricParams, Field(discriminator="kind")
]

_FITTING: dict[LabelKind, tuple[str, ...]] = {
    "one": ("auto", "cross_entropy", "bce", "focal", "asymmetric"),
    "many": ("auto", "bce", "focal", "asymmetric"),
}


def families_of(params: LossParams) -> FamilyParams | None:
    """Return the settings of the family term; None where there is none."""
    return None if isinstance(params, AutoParams | CrossEntropyParams) else params.families


def loss_files(params: LossParams) -> dict[str, str]:
    """Return path, as in the params' dump -> digest, of the files that the loss is read from."""
    families = families_of(params)
    return {} if families is None else {families.groups.name: file_digest(families.groups)}


def loss_link(params: LossParams, label_kind: LabelKind) -> Link:
    """Return what makes probabilities of a network's logits, where it is trained by this loss."""
    kind = params.kind
    return "softmax" if kind == "cross_entropy" or (kind == "auto" and label_kind == "one") else "sigmoid"


def require_label_kind(params: LossParams, label_kind: LabelKind) -> None:
    """Raise ParamsError for a loss that does not fit a corpus's label kind."""
    if params.kind not in _FITTING[label_kind]:
        raise ParamsError(
            f"train.loss.kind: expected one of {', '.join(_FITTING[label_kind])} for a corpus with label kind {label_kind}, "
            f"any number of labels a clip, found {params.kind}, which needs exactly one"
        )
