"""Weights of a published audio spectrogram transformer in any of its formats, and how they get into a network.

Nothing is loaded in part without a token. Every tensor of the file must be one that a network of our sizes has in that
format, with the same shape; a head for another number of classes is left new, with a warning. The position table is cut or
resized to our clips and mel bands, but not to other strides: the rule cuts the middle out of a table with more columns, and
at another stride fewer columns cover the same seconds, so that every patch would get the position of some other time.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import SonolexError
from pipeline.models.base import PretrainedMetadata
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams
from pipeline.models.encoders.transformer import NORM_EPSILON, TransformerParams
from pipeline.models.heads.class_token import NORM_EPSILON as HEAD_NORM_EPSILON
from pipeline.models.heads.class_token import ClassTokenParams
from pipeline.models.parts import EncoderParams, HeadParams, InputParams, StemParams
from pipeline.models.positions import LearnedParams, fit_grid
from pipeline.models.registry import CHECKPOINT_FORMATS
from pipeline.models.stems.patches import PatchesParams

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams

log = logging.getLogger(__name__)

N_MELS = 128  # of every published AST
_HEAD_WIDTH = 64  # of an attention head, of every DeiT and every AST
_PREFIX = "module."  # of the authors' files
# What the log-mel frames of every published AST were made with; those of Kaldi, at AST's settings.
_FRONT_END = {
    "front_end": "kaldi",
    "sample_rate": 16000,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": N_MELS,
}


class AstForm(NamedTuple):
    """Sections of a network of the published form."""

    stem: PatchesParams
    positions: LearnedParams
    encoder: TransformerParams


def ast_form(network: "NetworkParams") -> AstForm | None:
    """Return the sections of a network that is a published AST in all but its sizes; None for any other."""
    stem, encoder, head = network.stem, network.encoder, network.head
    if (
        network.reads == "frames"
        and isinstance(stem, PatchesParams)
        and isinstance(stem.positions, LearnedParams)
        and isinstance(encoder, TransformerParams)
        and isinstance(head, ClassTokenParams)
        and head.distillation_token
    ):
        return AstForm(stem, stem.positions, encoder)
    return None


class Stated(NamedTuple):
    """A setting that a file states, and that our params must agree with."""

    where: str  # in which file, under which name
    value: object


class AstCheckpointParams(CheckpointParams):
    def require_network(self, network: "NetworkParams") -> None:
        if ast_form(network) is None:
            found = ", ".join(f"{name} {part.kind}" for name, part in _parts(network).items())
            raise ValueError(
                "pretrained: weights of an AST need input.kind frames, stem.kind patches with positions.kind learned, "
                f"encoder.kind transformer and head.kind class_token with distillation_token true, found {found}; "
                "recipes/ast_base384.yaml has them, or set pretrained to null"
            )


def _parts(network: "NetworkParams") -> dict[str, InputParams | StemParams | EncoderParams | HeadParams]:
    return {"input": network.input, "stem": network.stem, "encoder": network.encoder, "head": network.head}


class AstCheckpoint(Checkpoint):
    """A format sets what its files say, and converts weights both ways; each direction is the other's inverse."""

    signature: ClassVar[str]  # name of a tensor that tells the format
    positions: ClassVar[str]  # name of the position table
    classes: ClassVar[str | None]  # name of the matrix of classes, None where there is none
    tensors: dict[str, Tensor]  # what a network uses: without prefix, without dead heads
    input_size: tuple[int, int] | None = None  # mel bands and frames of the position table; None = a square photograph
    stated: Mapping[str, Stated] = {}  # key of our params, dotted -> what a file says
    norm_epsilons: tuple[float, float] = (
        NORM_EPSILON,
        HEAD_NORM_EPSILON,
    )  # of the encoder's layer norms and the head's

    @staticmethod
    @abstractmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights as the format has them."""

    @staticmethod
    @abstractmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return tensors of the format as our weights; `grid` is (rows, columns) of the position table."""

    def check(self, params: AstCheckpointParams) -> None:
        """Raise SonolexError unless the opened file has the digest that params say and is of this format."""
        self.require_digest(params.digest)
        if self.signature in self.tensors:
            return
        names = {name.removeprefix(_PREFIX) for name in self.tensors}
        kinds = {kind: CHECKPOINT_FORMATS[kind] for kind in CHECKPOINT_FORMATS}
        formats = {kind: other.signature for kind, other in kinds.items() if issubclass(other, AstCheckpoint)}
        others = [kind for kind, signature in formats.items() if signature in names]
        found = ", ".join(list(self.tensors)[:3]) or "no tensors"
        remedy = f"set pretrained.kind to {others[0]}" if others else f"pretrained.kind may be {', '.join(formats)}"
        raise SonolexError(
            f"pretrained: {self.where}: expected the tensor {self.signature} of the format `{params.kind}`, "
            f"found {found}, ...; {remedy}"
        )

    @property
    def metadata(self) -> PretrainedMetadata:
        return PretrainedMetadata(digest=self.digest, norm_epsilons=list(self.norm_epsilons))

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:
        if self.input_size is not None:
            for difference in front_end_differences(front_end, self.input_size[0]):
                log.warning(
                    "pretrained: %s: trained on frames of AST: %s; see recipes/ast_base384.yaml", self.where, difference
                )

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        form = ast_form(params)
        assert form is not None  # NetworkParams has seen to it
        self._require_stated(params)
        weights = network.state_dict()
        grid = self._grid(form)
        self._require_shapes(weights, grid)
        self._warn_of_attention_heads(form)
        read = self.from_format({name: tensor.float() for name, tensor in self.tensors.items()}, grid)
        read["stem.table"] = fit_grid(read["stem.table"], *weights["stem.table"].shape[:2])
        kept = self.classes is not None
        if kept and read["head.classify.weight"].shape != weights["head.classify.weight"].shape:
            log.warning(
                "pretrained: %s: its head is for %d classes, this corpus has %d: the head starts new",
                self.where, len(read["head.classify.weight"]), len(weights["head.classify.weight"]),
            )  # fmt: skip
            read = {
                name: tensor for name, tensor in read.items() if not name.startswith(("head.norm", "head.classify"))
            }
            kept = False
        network.load_state_dict(weights | read)
        log.info("pretrained: %s, digest %s, head %s", self.where, self.digest, "kept" if kept else "new")

    def _require_stated(self, params: "NetworkParams") -> None:
        sections: dict[str, dict[str, object]] = {name: part.model_dump() for name, part in _parts(params).items()}
        for key, (where, found) in self.stated.items():
            section, _, name = key.partition(".")
            expected = sections[section][name]
            if found != expected:
                raise SonolexError(
                    f"pretrained: {self.where}: {where}: expected {expected}, as {key} of the model says, found {found}; "
                    f"set {key} to {found}, or take other weights"
                )

    def _grid(self, form: AstForm) -> tuple[int, int]:
        """Return rows and columns of the checkpoint's position table at the stem's strides."""
        stem = form.stem
        if self.input_size is None:
            table = self.tensors.get(self.positions)
            side = 1 if table is None else math.isqrt(table.shape[1] - 2)
            return side, side
        n_mels, frames = self.input_size
        return (n_mels - stem.bands) // stem.stride_bands + 1, (frames - stem.frames) // stem.stride_frames + 1

    def _require_shapes(self, weights: Mapping[str, Tensor], grid: tuple[int, int]) -> None:
        """Raise SonolexError unless the file holds what a network of our sizes has in its format, head and table apart."""
        ours = {name: tensor.to("meta") for name, tensor in weights.items()}
        ours["stem.table"] = torch.empty(*grid, weights["stem.table"].shape[2], device="meta")
        expected = {name: tuple(tensor.shape) for name, tensor in self.to_format(ours).items()}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if self.classes in found:
            classes, bias = self.classes, self.classes.replace("weight", "bias")
            expected[classes] = (found[classes][0], *expected[classes][1:])
            expected[bias] = found[classes][:1]
        wrong: dict[str, tuple[int, ...] | None] = {
            name: shape for name, shape in found.items() if shape != expected.get(name)
        }
        wrong |= {name: None for name in expected if name not in found}
        if not wrong:
            return
        name = next(iter(wrong))
        depth = len({name.partition("norm1")[0] for name in found if "norm1.weight" in name})
        depth = depth or len(
            {name.partition("layernorm_before")[0] for name in found if "layernorm_before.weight" in name}
        )
        if name == self.positions:
            remedy = (
                "set stem.stride_frames and stem.stride_bands to those of the weights (a table is not refitted to other "
                "strides), or pretrained.frames to the frames they were trained on"
            )
        else:
            width = self.tensors[self.positions].shape[-1] if self.positions in found else "unknown"
            remedy = (
                f"these weights have width {width} and depth {depth}: set width, depth, heads and mlp_ratio of the encoder "
                "and the stem to theirs"
            )
        raise SonolexError(
            f"pretrained: {self.where}: {name}: expected {_shape(expected.get(name))}, found {_shape(found.get(name))}"
            f"{f' ({len(wrong) - 1} more tensors differ)' if len(wrong) > 1 else ''}; {remedy}"
        )

    def _warn_of_attention_heads(self, form: AstForm) -> None:
        """Warn of a number of heads that no published model has; but for config.json, nothing in the weights shows it."""
        width, heads = form.encoder.width, form.encoder.heads
        usual = width // _HEAD_WIDTH
        if "encoder.heads" not in self.stated and width % _HEAD_WIDTH == 0 and heads != usual:
            log.warning(
                "pretrained: %s: published weights of width %d have %d heads, the encoder has %d: set encoder.heads to %d",
                self.where, width, usual, heads, usual,
            )  # fmt: skip


def front_end_differences(front_end: Mapping[str, object], n_mels: int) -> list[str]:
    """Return in what the frames of a run differ from those of every published AST."""
    differences = []
    for key, expected in (_FRONT_END | {"n_mels": n_mels}).items():
        if front_end.get(key, expected) != expected:
            differences.append(f"{key}: expected {expected}, found {front_end[key]}")
    return differences


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {shape}"
