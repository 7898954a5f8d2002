"""Checkpoint format of models that were trained here: the folder of a trained model, or a bundle of one model.

All parts are loaded by name, and every shape is checked. Frames, tokens and the form of the normalisation must be those of
the weights, which know nothing else. The head is loaded whole where the corpus has the same classes; by the names of
classes where the params say so, and classes that only the corpus has begin with random weights; and else it is new. Of a
run with a checkpoint ensemble the weights at the end of training count.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from pipeline.artifacts.model import MEMBERS, MODEL, Normalisation, PretrainedMetadata, TrainedModel, open_model
from pipeline.artifacts.settings import leaves
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.errors import ArtifactError, SonolexError
from pipeline.models.base import by_channel
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams
from pipeline.models.checkpoint_formats.class_rows import ClassRows, find_shared_rows
from pipeline.models.checkpoint_formats.files import require_shapes
from pipeline.models.head_classes import join_classes, split_classes
from pipeline.paths import input_path
from pipeline.spectrogram.registry import FRONT_ENDS

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams

log = logging.getLogger(__name__)

_NAMED = 8  # settings or classes in a message
_PARTS = ("input", "stem", "encoder")
# Last names of settings of the parts that are of no account to trained weights: they act in training, or are checked apart.
_OF_TRAINING = {
    "drop_path",
    "dropout",
    "embedding_rate",
    "freeze_convolutions",
    "norm_momentum",
    "normalisation",
    "std_scale",
}


class TrainedModelParams(CheckpointParams):
    kind: Literal["sonolex"]  # `source` is a folder models/<model>/<fold>/<seed>, or a bundle
    classes: ClassRows  # rows of its classifier that the head begins with

    std_scale: ClassVar[float | None] = None
    log_mel_only: ClassVar[bool] = False

    @property
    def has_statistics(self) -> bool:
        return True

    @property
    def form(self) -> PretrainedMetadata:
        return _open(_model_folder(input_path(self.source))).metadata["input"].get("pretrained", {})

    def rate_remark(self, learning_rate: float) -> str | None:
        """Return None: which rate is too high for one's own weights is not published."""
        return None

    def require_network(self, network: "NetworkParams") -> None:
        """Accept every network: which one the weights fit is known when they are opened."""


class TrainedModelCheckpoint(Checkpoint):
    Params = TrainedModelParams

    def __init__(self, params: TrainedModelParams) -> None:
        self.model = _open(_model_folder(input_path(params.source)))
        self._card, self.where = self.model.metadata, str(self.model.path)
        self._weights = {name: torch.from_numpy(values) for name, values in self.model.weights.items()}
        self.digest = self._card["weights"]
        self.require_digest(params.digest)
        self._section: dict[str, Any] = self._card["params"]
        if self._section["kind"] != "network":
            raise SonolexError(
                f"pretrained: {self.where}: expected the weights of a network, found those of a model of kind "
                f"{self._section['kind']}; set pretrained.source to a network, or pretrained to null"
            )
        if (normalisation := self._card["input"].get("normalisation")) is not None:
            parts = by_channel(normalisation, 1)
            self.statistics = [(part["mean"], part["std"]) for part in parts]
        self._asked = params.classes
        self._rows: list[int | None] | None = None  # of each class of the corpus; None = a new head
        self._classes: list[str] = []  # of the corpus; none = not chosen

    @property
    def metadata(self) -> PretrainedMetadata:
        return {**self._card["input"].get("pretrained", {}), "digest": self.digest}

    @property
    def num_classes(self) -> int:
        return len(self._card["classes"])

    def require_run(self, params: "NetworkParams", front_end: FrontEndMetadata, vocabulary: str | None) -> None:
        reads = self._card["reads"]
        if params.reads != reads:
            raise SonolexError(
                f"pretrained: {self.where}: expected weights of a network that reads {params.reads}, found one of "
                f"{reads}; set pretrained.source to another, or the model's input.kind to {self._section['input']['kind']}"
            )
        if reads == "tokens":
            self._require_vocabulary(vocabulary)
        elif wrong := _front_end_differences(self._card["front_end"], front_end):
            found = ", ".join(f"{key} {value}" for key, (value, _) in wrong.items())
            remedy = ", ".join(f"{key} to {value}" for key, (_, value) in wrong.items())
            raise SonolexError(
                f"pretrained: {self.where}: expected frames as the weights were trained on, found {found}; set {remedy}"
            )

    def require_normalisation(self, normalisation: Normalisation) -> None:
        """Raise SonolexError for another form or scale; other means and deviations are only warned of."""
        stored = self._card["input"]["normalisation"]
        if _form(normalisation) != _form(stored):
            right = stored["kind"] if stored["kind"] in ("clip", "none") else "pretrained"
            raise SonolexError(
                f"pretrained: {self.where}: expected frames that are normalised as those of the weights, {stored['kind']}, "
                f"found {normalisation['kind']}; set the model's input.normalisation to {right}"
            )
        if normalisation["std_scale"] != stored["std_scale"]:
            raise SonolexError(
                f"pretrained: {self.where}: expected input.std_scale {stored['std_scale']:g}, as the weights were trained "
                f"with, found {normalisation['std_scale']:g}; set it so"
            )
        found = [(part["mean"], part["std"]) for part in by_channel(normalisation, 1)]
        if not all(map(_close, found, self.statistics)):
            log.warning(
                "pretrained: %s: frames are normalised by mean and standard deviation %.4g, %.4g, those of the weights "
                "were by %.4g, %.4g; set input.normalisation to pretrained for theirs",
                self.where, *found[0], *self.statistics[0],
            )  # fmt: skip

    def choose_classes(self, classes: Sequence[str]) -> None:
        names, self._classes = self._card["classes"], list(classes)
        if self._asked is not None:
            self._rows = find_shared_rows(self._asked, classes, names)
        elif set(classes) == set(names):
            self._rows = [names.index(name) for name in classes]

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        ours = network.state_dict()
        loaded = ours | self.weights_of_parts(network, params)
        for key, value, stored in self._differences(params):
            log.warning(
                "pretrained: %s: its network has %s %s, this one %s; set it so unless you mean it",
                self.where, key, stored, value,
            )  # fmt: skip
        if self._classes:
            loaded |= self._head(network, ours)
        network.load_state_dict(loaded)

    def weights_of_parts(self, network: "Network", params: "NetworkParams") -> dict[str, Tensor]:
        """Return the weights of all parts but the head. Raises SonolexError unless they are those of the network."""
        found = {name: tensor for name, tensor in self._weights.items() if not network.is_of_head(name)}
        expected = {
            name: tensor
            for name, tensor in network.state_dict().items()
            if not network.is_of_head(name) and (name in found or not name.startswith("head."))  # tokens of a new head
        }
        advice = _advice(self._differences(params)) or "use other weights"
        require_shapes(expected, found, self.where, "input, stem and encoder", advice)
        return found

    def _require_vocabulary(self, vocabulary: str | None) -> None:
        if vocabulary not in (None, self._card["source"]):
            raise SonolexError(
                f"pretrained: {self.where}: expected weights on tokens of this run's vocabulary, of digest {vocabulary}, "
                f"found one of digest {self._card['source']}: the same token is another sound there; start from a network "
                "that reads frames, or from one of the same corpus, fold and settings of the vocabulary"
            )

    def _differences(self, params: "NetworkParams") -> list[tuple[str, object, object]]:
        """Return (key, value, stored value) of the settings by which this network and that of the weights differ."""
        ours = dict(leaves({part: params.model_dump(mode="json")[part] for part in _PARTS}))
        theirs = dict(leaves({part: self._section[part] for part in _PARTS}))
        return [
            (key, ours.get(key, "absent"), theirs.get(key, "absent"))
            for key in dict.fromkeys([*theirs, *ours])
            if ours.get(key) != theirs.get(key) and not _OF_TRAINING.intersection(key.split("."))
        ]

    def _head(self, network: "Network", ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the head: those of its classes that the model has, and else random ones."""
        own = split_classes(network, ours, len(self._classes))
        stored = split_classes(network, self._weights, self.num_classes)
        expected, found = ({**head.shared, **head.by_class[0]} for head in (own, stored))
        fits = {name: tensor.shape for name, tensor in expected.items()} == {name: v.shape for name, v in found.items()}
        if self._asked is None and (self._rows is None or not fits):
            return self._new_head(own.shared, "classes" if self._rows is None else "weights")
        assert self._rows is not None
        head, window = self._section["head"], self._section["window"]
        advice = f"set the model's head to {head} and its window to {window}, or pretrained.classes to null"
        require_shapes(expected, found, self.where, "head", advice)
        new = [name for name, row in zip(self._classes, self._rows, strict=True) if row is None]
        log.info("pretrained: %s: head kept; new classes: %s", self.where, ", ".join(new) or "none")
        rows = [
            mine if row is None else stored.by_class[row] for mine, row in zip(own.by_class, self._rows, strict=True)
        ]
        return join_classes(network, stored._replace(by_class=rows))

    def _new_head(self, shared: Mapping[str, Tensor], reason: str) -> dict[str, Tensor]:
        """Return what a new head does not begin with as it is: the weights of attention heads, which then sum to 1."""
        log.warning(
            "pretrained: %s: its head has other %s than this network's, which keeps its random weights; "
            "pretrained.classes by_name keeps classes that both have",
            self.where, reason,
        )  # fmt: skip
        weights = shared.get("head.head_weights")
        if weights is None or not self.metadata.get("free_head_weights"):
            return {}
        return {"head.head_weights": torch.full_like(weights, -math.log(len(weights)))}


def _model_folder(path: Path) -> Path:
    """Return the folder of a model that a path names, itself or as the only one of a bundle."""
    if (path / MODEL.card).is_file():
        return path
    members = sorted((path / MEMBERS).glob("*/"))
    if len(members) == 1:
        return members[0]
    if members:
        raise SonolexError(
            f"pretrained: {path}: expected one model, found a bundle of {len(members)}; set pretrained.source to one of "
            f"them, such as {members[0]}"
        )
    found = "a folder without it" if path.is_dir() else "a file" if path.exists() else "nothing"
    raise SonolexError(
        f"pretrained: {path}: expected the folder of a trained model, with {MODEL.card}, or a bundle, found {found}; set "
        "pretrained.source to a folder models/MODEL/FOLD/SEED, or to what `sonolex bundle` has written"
    )


def _open(path: Path) -> TrainedModel:
    try:
        return open_model(path)
    except ArtifactError as error:  # its advice is for the project that trained it
        found = " ".join(str(error.found).split())
        raise SonolexError(
            f"pretrained: {path}: {error.field}: expected {error.expected}, found {found}; the folder is incomplete or was "
            "altered: copy it whole again"
        ) from None


def _front_end_differences(stored: FrontEndMetadata, found: FrontEndMetadata) -> dict[str, tuple[object, object]]:
    """Return key of params.yaml -> (value, stored value) of the settings by which two front ends differ."""
    ours, theirs = _front_end_settings(found), _front_end_settings(stored)
    return {key: (ours.get(key, "absent"), theirs[key]) for key in theirs if ours.get(key, "absent") != theirs[key]}


def _front_end_settings(metadata: FrontEndMetadata) -> dict[str, object]:
    params = metadata["params"]
    section = {**FRONT_ENDS[params["kind"]].Params.unrecorded, **params}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in leaves(section)}
    return {f"spectrogram.front_end.{key}": value for key, value in settings.items()} | {
        "spectrogram.mix": metadata.get("mix", "mean")
    }


def _advice(differences: Sequence[tuple[str, object, object]]) -> str:
    settings = [f"{key} to {stored}" for key, _, stored in differences[:_NAMED]]
    return f"set the model's {', '.join(settings)}, as the weights have it" if settings else ""


def _form(normalisation: Normalisation) -> str:
    """Return the form of a normalisation: by each clip, none, or by constants, wherever these are from."""
    return normalisation["kind"] if normalisation["kind"] in ("clip", "none") else "constants"


def _close(ours: tuple[float, float], theirs: tuple[float, float]) -> bool:
    return all(math.isclose(own, other, rel_tol=1e-6) for own, other in zip(ours, theirs, strict=True))
