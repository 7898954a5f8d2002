"""Published weights of the audio spectrogram transformer in any of their formats: checks, conversion and loading.

Weights are never loaded partially without a message. Every tensor of the file must be one of a network of the given sizes in
that format, with the same shape; a head for another number of classes keeps its random weights, with a warning. The position
table is cropped or resized to other clip lengths and numbers of mel bands, but not to other strides: cropping keeps the
middle of a table with more columns, and at another stride fewer columns cover the same seconds, so that every patch would
get the position of another time.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from pipeline.artifacts.model import PretrainedMetadata
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams, warn_of_frames, warn_of_new_head
from pipeline.models.checkpoint_formats.class_rows import ClassRows, audioset_names, find_rows
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


class AstForm(NamedTuple):
    """Sections of a network with AST's architecture."""

    stem: PatchesParams
    positions: LearnedParams
    encoder: TransformerParams


def ast_form(network: "NetworkParams") -> AstForm | None:
    """Return the sections of a network with AST's architecture, of any size; None for any other network."""
    stem, encoder, head = network.stem, network.encoder, network.head
    if (
        network.reads == "frames"
        and isinstance(stem, PatchesParams)
        and isinstance(stem.positions, LearnedParams)
        and isinstance(encoder, TransformerParams)
        and isinstance(head, ClassTokenParams)
        and head.distillation_token
        and network.window is None
    ):
        return AstForm(stem, stem.positions, encoder)
    return None


class AstSizes(NamedTuple):
    """Sizes of a published network, which its files determine."""

    n_mels: int
    frames: int  # of the position table
    patch: int  # frames and bands of a patch
    stride_frames: int
    stride_bands: int
    width: int
    depth: int  # blocks
    heads: int
    hidden: int  # units of the MLP of a block


def usual_heads(width: int) -> int:
    """Return the number of attention heads of published networks of a width."""
    return max(1, width // _HEAD_WIDTH)


def published_network(sizes: AstSizes, pretrained: Mapping[str, object]) -> dict[str, object]:
    """Return the section of `models` of a network as its authors ran it: shorter clips are padded, as in its training."""
    positions = {"kind": "learned", "frames": sizes.frames, "shorter": "pad"}
    strides = {"stride_frames": sizes.stride_frames, "stride_bands": sizes.stride_bands}
    blocks = {"width": sizes.width, "depth": sizes.depth, "heads": sizes.heads, "drop_path": 0.0}
    return {
        "kind": "network",
        "input": {"kind": "frames", "normalisation": "pretrained", "std_scale": 2.0},
        "stem": {"kind": "patches", "frames": sizes.patch, "bands": sizes.patch, **strides, "positions": positions},
        "encoder": {"kind": "transformer", **blocks, "mlp_ratio": sizes.hidden / sizes.width},
        "head": {"kind": "class_token", "distillation_token": True},
        "window": None,
        "pretrained": dict(pretrained),
    }


class Stated(NamedTuple):
    """A setting stated in a file, with which the params must agree."""

    where: str  # file and name of the setting
    value: object


class AstCheckpointParams(CheckpointParams):
    highest_rate: ClassVar[float] = 2.5e-4  # of Speech Commands, from ImageNet
    std_scale: ClassVar[float] = 2.0

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


class AstClassifierParams(AstCheckpointParams):
    """Section of a format whose weights have a classifier."""

    classes: ClassRows  # rows of it that the head begins with


class AstCheckpoint(Checkpoint):
    """Base of AST's formats: a format reads its files, and converts weights in both directions, inverse to each other."""

    signature: ClassVar[str]  # name of a tensor that identifies the format
    positions: ClassVar[str]  # name of the position table
    classes: ClassVar[str | None]  # name of the classifier's matrix, None where there is none
    tensors: dict[str, Tensor]  # those that a network uses: without prefix and unused heads
    input_size: tuple[int, int] | None = None  # mel bands and frames of the position table; None = a square image
    rows: ClassRows = None  # of the classifier, see `choose_classes`
    stated: Mapping[str, Stated] = {}  # dotted key of our params -> setting stated in a file
    norm_epsilons: tuple[float, float] = (
        NORM_EPSILON,
        HEAD_NORM_EPSILON,
    )  # of the encoder's layer norms and the head's

    @staticmethod
    @abstractmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights in the format."""

    @staticmethod
    @abstractmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return tensors of the format as our weights; `grid` is (rows, columns) of the position table."""

    def check(self, params: AstCheckpointParams) -> None:
        """Raise SonolexError unless the opened file has the digest in the params and is of this format."""
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

    def class_names(self) -> list[str]:
        """Return the names of the classifier's classes. Raises SonolexError where nothing says them."""
        return audioset_names(self.num_classes or 0, self.where)

    def choose_classes(self, classes: Sequence[str]) -> None:
        if self.classes is None or self.rows is None:
            return
        rows = find_rows(self.rows, classes, self.class_names())
        for name in (self.classes, self.classes.replace("weight", "bias")):
            self.tensors[name] = self.tensors[name][rows]

    @property
    def metadata(self) -> PretrainedMetadata:
        return PretrainedMetadata(digest=self.digest, norm_epsilons=list(self.norm_epsilons))

    @property
    def num_classes(self) -> int | None:
        matrix = self.tensors.get(self.classes or "")
        return None if matrix is None else len(matrix)

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:
        if self.input_size is not None:
            warn_of_frames(front_end, self.input_size[0], self.where, "AST", "recipes/ast_base384.yaml")

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        form = ast_form(params)
        assert form is not None  # checked by NetworkParams
        self._require_stated(params)
        weights = network.state_dict()
        grid = self._grid(form)
        self._require_shapes(weights, grid)
        self._warn_of_attention_heads(form)
        read = self.from_format({name: tensor.float() for name, tensor in self.tensors.items()}, grid)
        read["stem.table"] = fit_grid(read["stem.table"], *weights["stem.table"].shape[:2])
        kept = self.classes is not None
        if kept and read["head.classify.weight"].shape != weights["head.classify.weight"].shape:
            warn_of_new_head(self.where, len(read["head.classify.weight"]), len(weights["head.classify.weight"]))
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
                    f"set {key} to {found}, or use other weights"
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
        """Raise SonolexError unless the file has the tensors of a network of these sizes, except head and position table."""
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
                "set stem.stride_frames and stem.stride_bands to those of the weights (a table is not resized to other "
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
        """Warn of a number of attention heads that no published model has; only config.json states it, not the weights."""
        width, heads = form.encoder.width, form.encoder.heads
        usual = width // _HEAD_WIDTH
        if "encoder.heads" not in self.stated and width % _HEAD_WIDTH == 0 and heads != usual:
            log.warning(
                "pretrained: %s: published weights of width %d have %d heads, the encoder has %d: set encoder.heads to %d",
                self.where, width, usual, heads, usual,
            )  # fmt: skip


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {shape}"
