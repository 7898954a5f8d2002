"""Checkpoint format of PSLA's authors (Gong, Chung and Glass, 2021): efficientnet_pytorch's layout, and an attention head.

A torch state dict with the prefix `module.`; `effnet.` holds the encoder, whose blocks are numbered through all stages, and
`attention.` the head, which has a pair of 1 x 1 convolutions for each attention head. The file states neither the mean and
standard deviation of the frames nor their number, so params do. The network is timm's `efficientnet_b<size>`, which pads
alike on both sides, with norms of epsilon 1e-3; timm's `tf_` networks pad by the size of the image.

The authors' weights of attention heads need not sum to 1. Metadata says so to our head
(`pipeline/models/heads/attention.py`), whose probabilities then are the authors', in training too.

Conventions: C channel, H attention head, K class.
"""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.model import PretrainedMetadata
from pipeline.errors import SonolexError, spell
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams, warn_of_frames, warn_of_new_head
from pipeline.models.checkpoint_formats.files import read_tensors, require_file, require_shapes
from pipeline.models.encoders.timm_network import TimmParams
from pipeline.models.heads.attention import AttentionParams
from pipeline.paths import input_path

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams

PREFIX = "module."
SIGNATURE = "effnet._conv_stem.weight"
NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.01  # of efficientnet_pytorch
DROP_PATH = 0.2  # of efficientnet_pytorch, unless told otherwise
N_MELS = 128
MEAN, STD = -4.6476, 4.5699  # of the log-mel values, in the authors' runs on both corpora

_ENCODER, _HEAD = "effnet.", "attention."
_HEAD_WEIGHTS, _WEIGHTS = f"{_HEAD}head_weight", "head_weights"  # theirs, and ours
_SCORES = re.compile(rf"{re.escape(_HEAD)}(?P<part>att|cla)\.(?:(?P<number>\d+)\.)?(?P<kind>weight|bias)")
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
# Modules of a block in timm by those of efficientnet_pytorch: with an expansion of the channels, and without.
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
} | _SQUEEZE  # fmt: skip
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} | _SQUEEZE
# Channels of the encoder's output and number of blocks, by which a size is known.
_SIZES = ((1280, 16), (1280, 23), (1408, 23), (1536, 26), (1792, 32), (2048, 39), (2304, 45), (2560, 55))


class PslaParams(CheckpointParams):
    highest_rate: ClassVar[float] = 1e-3  # of AudioSet's balanced set
    kind: Literal["psla"]  # `source` is the .pth file
    mean: float  # of the log-mel values in its training
    std: PositiveFloat

    @property
    def has_statistics(self) -> bool:
        return True

    def require_source(self) -> None:
        require_file(input_path(self.source))

    def require_network(self, network: "NetworkParams") -> None:
        encoder, head = network.encoder, network.head
        if not (isinstance(encoder, TimmParams) and isinstance(head, AttentionParams)):
            raise ValueError(
                "pretrained: weights of PSLA need encoder.kind timm and head.kind attention, found "
                f"{encoder.kind} and {head.kind}; recipes/psla_audioset.yaml has them, or set pretrained to null"
            )
        if not encoder.network.startswith("efficientnet_b") or encoder.norm_epsilon != NORM_EPSILON:
            raise ValueError(
                f"pretrained: weights of PSLA need encoder.network efficientnet_b0 to b7 with encoder.norm_epsilon "
                f"{NORM_EPSILON:g}, found {encoder.network} with {spell(encoder.norm_epsilon)}; set them so"
            )


class PslaSizes(NamedTuple):
    """Sizes of a published network, which the shapes of its tensors determine."""

    network: str  # timm's name
    heads: int  # of the attention; 0 = the plain mean
    num_classes: int


class PslaCheckpoint(Checkpoint):
    Params = PslaParams

    def __init__(self, params: PslaParams) -> None:
        path = input_path(params.source)
        self.tensors = without_prefix(read_tensors(path))
        self.where, self.digest = str(path), file_digest(path)
        self.require_digest(params.digest)
        if SIGNATURE not in self.tensors:
            found = ", ".join(list(self.tensors)[:3]) or "no tensors"
            raise SonolexError(
                f"pretrained: {path}: expected the tensor {SIGNATURE} of the format `psla`, found {found}, ...; set "
                "pretrained.kind to the format of these weights (docs/models.md)"
            )
        self.statistics = [(params.mean, params.std)]
        self._require_positive_head_weights()

    @property
    def metadata(self) -> PretrainedMetadata:
        return PretrainedMetadata(digest=self.digest, free_head_weights=_HEAD_WEIGHTS in self.tensors)

    @property
    def num_classes(self) -> int:
        return published_sizes(self.tensors, self.where).num_classes

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:
        warn_of_frames(front_end, N_MELS, self.where, "PSLA", "recipes/psla_audioset.yaml")

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        encoder = network.encoder.network
        assert isinstance(encoder, nn.Module)
        encoder_weights = _encoder_weights(self.tensors, encoder.state_dict())
        advice = f"set encoder.network to {published_sizes(self.tensors, self.where).network}, or use other weights"
        require_shapes(encoder.state_dict(), encoder_weights, self.where, "encoder", advice)
        encoder.load_state_dict(encoder_weights, strict=False)
        self._load_head(network.head, params)

    def _load_head(self, head: nn.Module, params: "NetworkParams") -> None:
        """Load the attention head; one for another number of classes begins with the authors' random values."""
        assert isinstance(params.head, AttentionParams)  # checked by NetworkParams
        sizes, expected = published_sizes(self.tensors, self.where), head.state_dict()
        if params.head.heads != sizes.heads:
            raise SonolexError(
                f"pretrained: {self.where}: expected {params.head.heads} attention heads, as head.heads of the model says, "
                f"found {sizes.heads}; set head.heads to {sizes.heads}"
            )
        read = _head_weights(self.tensors)
        if read["score.weight"].shape != expected["score.weight"].shape:
            warn_of_new_head(self.where, sizes.num_classes, len(expected["score.weight"]) // max(sizes.heads, 1))
            read = {
                name: torch.full_like(tensor, -math.log(len(tensor)))
                for name, tensor in read.items()
                if name == _WEIGHTS
            }
        head.load_state_dict(expected | read)

    def _require_positive_head_weights(self) -> None:
        """Raise SonolexError for a weight of an attention head that is not above 0, of which we keep the logarithm."""
        weights = self.tensors.get(_HEAD_WEIGHTS)
        if weights is not None and not bool((weights > 0).all()):
            raise SonolexError(
                f"pretrained: {self.where}: {_HEAD_WEIGHTS}: expected weights above 0, found {weights.tolist()}; use other "
                "weights: a sum with a negative part need not be a probability"
            )


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file without the prefix of torch's DataParallel."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def published_sizes(tensors: Mapping[str, Tensor], where: str) -> PslaSizes:
    """Return the sizes of a network by its tensors, named without prefix. Raises SonolexError for other networks."""
    scores = [tensor for name, tensor in tensors.items() if _is_score(name, "cla", "weight")]
    blocks = {name.split(".")[2] for name in tensors if name.startswith(f"{_ENCODER}_blocks.")}
    found = (scores[0].shape[1] if scores else 0, len(blocks))
    if found not in _SIZES:
        raise SonolexError(
            f"{where}: expected an EfficientNet b0 to b7 and a head of {_HEAD}cla, found {found[1]} blocks and {found[0]} "
            "channels before the head; fetch the file again"
        )
    heads = len(scores) if any(_is_score(name, "att", "weight") for name in tensors) else 0
    return PslaSizes(f"efficientnet_b{_SIZES.index(found)}", heads, len(scores[0]))


def published_section(sizes: PslaSizes, frames: int, pretrained: Mapping[str, object]) -> dict[str, object]:
    """Return the section of `models` of a network as its authors ran it, on clips that are padded or cut to `frames`."""
    norms = {"norm_epsilon": NORM_EPSILON, "norm_momentum": NORM_MOMENTUM}
    return {
        "kind": "network",
        "input": {"kind": "frames", "normalisation": "pretrained", "std_scale": 1.0},
        "stem": {"kind": "fixed_length", "frames": frames, "fill": "zero"},
        "encoder": {"kind": "timm", "network": sizes.network, "drop_path": DROP_PATH, **norms},
        "head": {"kind": "attention", "heads": sizes.heads},
        "window": None,
        "pretrained": dict(pretrained),
    }


def _is_score(name: str, part: str, kind: str) -> bool:
    found = _SCORES.fullmatch(name)
    return found is not None and (found["part"], found["kind"]) == (part, kind)


def _encoder_weights(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors by timm's names; one that has no such name keeps its own, and is refused later."""
    places = dict.fromkeys(".".join(name.split(".")[:3]) for name in expected if name.startswith("blocks."))
    blocks = [(place, _EXPANDING if f"{place}.conv_pwl.weight" in expected else _PLAIN) for place in places]
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(_ENCODER):
            renamed[_to_timm(name.removeprefix(_ENCODER), blocks)] = tensor
    return renamed


def _to_timm(name: str, blocks: list[tuple[str, dict[str, str]]]) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith("_blocks."):
        return f"{_OUTER.get(module, module)}.{kind}"
    _, number, inner = module.split(".")
    if int(number) >= len(blocks):
        return name
    place, names = blocks[int(number)]
    return f"{place}.{names.get(inner, inner)}.{kind}"


def _head_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our head's tensors: those of all attention heads one after the other, (H * K, C), and logarithms of weights."""
    ours = {"cla": "score", "att": "attend"}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := _SCORES.fullmatch(name):
            flat = tensor.flatten(1) if found["kind"] == "weight" else tensor
            parts.setdefault(f"{ours[found['part']]}.{found['kind']}", {})[int(found["number"] or 0)] = flat
    head = {name: torch.cat([by_number[number] for number in sorted(by_number)]) for name, by_number in parts.items()}
    if (weights := tensors.get(_HEAD_WEIGHTS)) is not None:
        head[_WEIGHTS] = weights.log()
    return head
