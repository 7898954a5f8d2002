"""Interfaces of a network's four parts: input, stem, encoder, head.

    stored clips --input--> feature map --stem--> positions --encoder--> positions in context --head--> logits

A part is one file and one line of `pipeline/models/registry.py`. It has its section of params.yaml as the attribute
`Params`, and is built from that section and the parts before it. Its capabilities are attributes; nothing is probed with
`hasattr`.

Conventions: B batch, T frame, F feature, N position, D width, S time step, R row, K class. A feature map is (B, T, F)
float32. Positions (B, N, D) run through time and, at each time step, through its rows from low bands to high: N = S * R.
Masks are bool, True = real, from a clip's start to its end; None = all real, which lets fused kernels run without one.
Padding has no effect: a clip's logits do not depend on what follows its end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.artifacts.model import InputMetadata, Normalisation, PretrainedMetadata, Reads
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.models.base import NOT_NORMALISED, VocabularySection
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.models.network import NetworkParams

Statistics = tuple[float, float]  # mean and standard deviation


class InputParams(Params):
    """Section of an input."""

    kind: str

    @property
    def normalises_by_clip(self) -> bool:
        """Whether each clip has its own normalisation, so that silence has no single value."""
        return False

    @property
    def normalises_as_pretrained(self) -> bool:
        """Whether the normalisation is that of the pretrained weights."""
        return False

    @property
    def needs_vectors(self) -> bool:
        """Whether it starts from vectors of a vocabulary's tokens."""
        return False

    @property
    def keeps_levels(self) -> bool:
        """Whether the feature map is in the front end's units."""
        return False

    def require_std_scale(self, expected: float) -> None:
        """Raise ValueError unless frames are scaled as those of the pretrained weights."""

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        """Raise ValueError for a vocabulary, given by its section, whose tokens cannot be read."""

    def metadata_of(self, front_end: FrontEndMetadata, vocabulary: Vocabulary | None) -> InputMetadata:
        """Return what the network needs to know of the front end behind tokens: nothing by default."""
        return InputMetadata()

    def levels(self, clips: Sequence[np.ndarray], vocabulary: Vocabulary | None) -> Sequence[np.ndarray]:
        """Return the frames (frame, mel) of stored clips in the front end's units, for an input with `keeps_levels`."""
        return clips

    def fit_normalisation(
        self, corpus: Callable[[], Sequence[Statistics]], pretrained: Sequence[Statistics]
    ) -> Normalisation:
        """Return the normalisation, from statistics by channel, of the training clips or of the pretrained weights."""
        return NOT_NORMALISED


class Input(nn.Module, ABC):
    """Module that maps stored clips to a feature map, which augmentation acts on."""

    Params: ClassVar[type[InputParams]]
    reads: ClassVar[Reads]
    num_features: int  # F, of all channels
    num_channels: int = 1  # of equally many features each, one after another
    frames_per_step: int = 1  # of the spectrogram in one frame of the feature map; more than one are its channels
    supports_pretraining: ClassVar[bool] = False  # it has a mask token, and a table that predictions are compared with
    supports_attribution: ClassVar[bool] = False  # there is `attribute`
    mask_token: int | None = None  # id of masked tokens; None where no tokens are read
    neighbours: Tensor  # (codebook, token, neighbour), of inputs with a mask token
    embedding_rate: float = 1.0  # learning rate of embeddings relative to other weights

    def __init__(self, params: InputParams, metadata: InputMetadata) -> None:
        super().__init__()
        self.metadata = metadata

    @property
    def zero(self) -> float:
        """Zero in the front end's units, on the feature map's scale."""
        return 0.0

    @property
    def silence(self) -> float:
        """The front end's floor, on the feature map's scale."""
        return 0.0

    @property
    def weights(self) -> list[nn.Parameter]:
        """The table of each codebook, (token, feature), special tokens last; none where no tokens are read."""
        return []

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Initialise from the vocabulary behind the tokens, before training; inputs of frames have none."""

    def attribute(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        """Return the inner product of each token's embedding with a gradient over the feature map, (B, codebook, T).

        `inputs` are tokens (B, codebook, T), `gradient` is (B, T, F). Only where `supports_attribution`.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, T, mel) normalised frames or (B, codebook, T) int64 tokens to a feature map."""


class StemParams(Params):
    """Section of a stem."""

    kind: str

    @property
    def pads(self) -> bool:
        """Whether shorter clips are padded, so that all have the same number of positions."""
        return False

    @property
    def time_stride(self) -> int | None:
        """Frames from one time step to the next, in clips of any length; None where it does not follow from the section."""
        return 1

    @property
    def reads_levels(self) -> bool:
        """Whether the feature map must be in the front end's units."""
        return False

    def fit(self, front_end: FrontEndMetadata, frame_rate: float, clips: Sequence[np.ndarray]) -> InputMetadata:
        """Return what the stem learns from the frames of training clips, which is stored with the input: nothing by default.

        `frame_rate` is that of the feature map, Hz. Raises ParamsError for a front end that the stem cannot read.
        """
        return InputMetadata()


class Stem(nn.Module, ABC):
    """Module that maps a feature map to the encoder's input positions."""

    Params: ClassVar[type[StemParams]]
    projects: ClassVar[bool | None] = True  # to the encoder's width; False: positions keep their features; None: either
    supports_masking: ClassVar[bool] = True  # augmentation may hide parts of the feature map
    num_features: int  # D
    num_channels: int = 1  # of positions that are feature maps still, as those of the input
    num_rows: int = 1  # R
    stride: int = 1  # frames from one time step to the next
    min_frames: int = 1  # that a time step is made of
    centre: float = 0.0  # frame that the first time step is centred on
    max_frames: int | None = None  # read of a clip, from its start; None = all
    max_frames_setting: ClassVar[str] = "frames"  # key of the section that sets max_frames
    num_positions: int | None = None  # N, if the same for all clips
    has_position_table: bool = False  # learned positions, for clips of a given length

    def __init__(self, params: StemParams, source: Input, width: int | None) -> None:
        """Build from the section, the input, and the encoder's width; None where the encoder reads any width."""
        super().__init__()

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, F) and its mask (B, T) to positions (B, N, D) and their mask (B, N)."""

    def real_time_steps(self, mask: Tensor, num_time_steps: int) -> Tensor:
        """Return which of a clip's time steps (B, S) lie within it, from the mask (B, T)."""
        return mask[:, :: self.stride]

    def frames_of(self, num_time_steps: int, num_frames: int) -> np.ndarray:
        """Return which frames each time step stands for, (S, T) bool: those nearer to its centre than to others'."""
        nearest = np.minimum((np.arange(num_frames) + self.stride // 2) // self.stride, num_time_steps - 1)
        return np.asarray(nearest == np.arange(num_time_steps)[:, None])

    def bands_of(self, num_features: int) -> np.ndarray:
        """Return which features of a frame, in each channel, each row stands for, (R, F) bool."""
        return np.ones((self.num_rows, num_features), dtype=np.bool_)


class EncoderParams(Params):
    """Section of an encoder."""

    kind: str

    @property
    def input_width(self) -> int | None:
        """D of its input positions; None where it reads positions of any width, from a stem without projection."""
        return None

    @property
    def time_stride(self) -> int:
        """Time steps of its input from one of its output to the next."""
        return 1

    def require_network(self, network: "NetworkParams") -> None:
        """Raise ValueError, naming the keys, for a network whose other parts the encoder cannot do with."""


class Encoder(nn.Module, ABC):
    """Module that maps positions to positions in context."""

    Params: ClassVar[type[EncoderParams]]
    keeps_positions: ClassVar[bool] = True  # output has the positions of the input
    supports_class_tokens: ClassVar[bool] = False  # every position may attend to every other
    supports_patchout: ClassVar[bool] = True  # it reads a sequence, of which positions may be dropped
    supports_activation_checkpointing: ClassVar[bool] = False  # it runs its blocks through `run_block`
    supports_pretraining: ClassVar[bool] = False  # masked tokens can be predicted from its output
    has_attention: ClassVar[bool] = False  # each of `depth` blocks calls scaled_dot_product_attention once
    has_directions: ClassVar[bool] = False  # features are concatenated states of a forward and a backward pass
    reads_samples: ClassVar[bool] = False  # of the front end `waveform`; else frames of any other
    has_feature_maps: ClassVar[bool] = False  # `forward` is `positions_of` of its `feature_maps`
    unadaptable: frozenset[str] = frozenset()  # last names of linear maps that adapters have no effect on
    num_features: int  # D of its output
    map_strides: tuple[
        int, int
    ]  # of encoders with feature maps: frames and features from one cell of a map to the next
    activation_checkpointing = False  # set by the training loop

    def __init__(self, params: EncoderParams, stem: Stem) -> None:
        """Build from the section and the stem, whose time steps the encoder keeps unless it sets others."""
        super().__init__()
        self.num_features = stem.num_features
        self.num_rows, self.stride, self.centre = stem.num_rows, stem.stride, stem.centre
        self.num_positions = stem.num_positions if self.keeps_positions else None

    @classmethod
    def build(cls, params: EncoderParams, stem: Stem, pretrained: PretrainedMetadata) -> "Encoder":
        """Build as the constructor does; `pretrained` records the weights that the network begins with, if there are any."""
        return cls(params, stem)

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Map (B, N, D) and their mask to positions in context and theirs.

        If `num_wanted` is given, only the first `num_wanted` of these are used; others may be left uncomputed.
        """

    def feature_maps(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, F) and their mask to the last feature maps (B, C, T', F') before pooling, and the mask (B, T').

        The cell (t, f) of a map is centred on frame `map_strides[0] * t + centre`, feature `map_strides[1] * f + centre`.
        """
        raise NotImplementedError

    def positions_of(self, maps: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return feature maps and their mask as positions in context and theirs."""
        raise NotImplementedError

    def run_block(self, block: nn.Module, *inputs: Tensor | int | None) -> Tensor:
        """Return `block(*inputs)`; with activation checkpointing its activations are computed again in the backward pass.

        The gradients are the same, in less memory and more time (Chen et al., 2016, "Training Deep Nets with Sublinear
        Memory Cost").
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return cast(Tensor, block(*inputs))

    def real_time_steps(self, real: Tensor) -> Tensor:
        """Return which output time steps of the encoder are real, from those of its input (B, S)."""
        return real


class HeadParams(Params):
    """Section of a head."""

    kind: str

    @property
    def needs_directions(self) -> bool:
        """Whether it reads the last states of a forward and of a backward pass."""
        return False


class Head(nn.Module, ABC):
    """Module that pools positions in context to one vector per clip, and maps it to logits."""

    Params: ClassVar[type[HeadParams]]
    needs_class_tokens: ClassVar[bool] = False  # it reads class tokens, which it prepends to the positions
    needs_fixed_length: ClassVar[bool] = False  # all clips must have the same number of positions
    supports_patchout: ClassVar[bool] = True
    supports_time_steps: ClassVar[bool] = False  # it has `classify_time_steps`
    class_weights: tuple[
        str, ...
    ] = ()  # names of weights with a row for each class; of attention heads one after another
    class_modules: ClassVar[str] = ""  # name of the list that has a module for each class; empty = none
    entering_weights: tuple[str, ...] = ()  # names of weights that enter the encoder with the positions: class tokens
    num_class_tokens: int = 0
    free_weights: bool = False  # those of attention heads need not sum to 1, as in PSLA's published weights

    def __init__(self, params: HeadParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__()

    def prepend_class_tokens(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Prepend the class tokens, if there are any, to the positions (B, N, D) and their mask."""
        return x, mask

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map positions in context (B, N, D) and their mask to logits (B, K)."""

    def classify_time_steps(self, x: Tensor, num_rows: int) -> Tensor:
        """Map positions (B, N, D) without class tokens, with `num_rows` per time step, to logits (B, S, K)."""
        raise NotImplementedError


def as_image(features: Tensor, num_channels: int) -> Tensor:
    """Return a feature map (B, T, C * F) of C channels as images (B, C, T, F)."""
    if num_channels == 1:
        return features[:, None]
    return torch.stack(features.chunk(num_channels, dim=2), dim=1)


def fit_frames(x: Tensor, mask: Tensor | None, frames: int, fill: float) -> Tensor:
    """Return (B, T, F) as (B, frames, F): a longer clip is cropped, a shorter one padded with `fill`."""
    if mask is not None:
        x = x.masked_fill(~mask[:, :, None], fill)
    if x.shape[1] > frames:  # tested, because an exported graph cannot crop to an unknown length
        x = x[:, :frames]
    return nn.functional.pad(x, (0, 0, 0, frames - x.shape[1]), value=fill)
