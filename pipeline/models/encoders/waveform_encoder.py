"""Waveform encoder of the package transformers, trained further: wav2vec 2.0, HuBERT, WavLM or data2vec audio.

Baevski et al., 2020, arXiv 2006.11477; Hsu et al., 2021, arXiv 2106.07447; Chen et al., 2022, arXiv 2110.13900; Baevski et
al., 2022, arXiv 2202.03555. Frames of samples (`pipeline/spectrogram/waveform.py`) are joined to waveforms again, and
normalised clip by clip where the weights were trained so. The form of the network follows from the weights that it begins
with, and is recorded in a trained model. Of the training of these encoders, layer drop and the masking of hidden states are
left out: `train.augmentation` masks.

Padding has no effect: statistics are of real samples, the group norm behind the first convolution counts real positions,
attention is masked, and so is what each convolution over positions reads.

Conventions: B batch, T frame, H sample of a frame, S hidden state, C channel, D width.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.artifacts.model import PretrainedMetadata, WaveformEncoderMetadata
from pipeline.models.inputs.frames import FramesParams
from pipeline.models.parts import Encoder, EncoderParams, Stem
from pipeline.spectrogram.encoder_files import Convolutions, require_transformers

if TYPE_CHECKING:
    from pipeline.models.network import NetworkParams

# Parts of the encoder -> their names in transformers.
PARTS = {"convolutions": "feature_extractor", "projection": "feature_projection", "transformer": "encoder"}

_SMALLEST_VARIANCE = 1e-7  # that transformers adds when it normalises a clip
_DROPOUTS = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
# Weights of WavLM's attention that it reads without calling their linear maps.
_READ_DIRECTLY = frozenset({"q_proj", "k_proj", "v_proj", "out_proj"})


class _Config(Protocol):
    """Config of an encoder in transformers."""

    model_type: str
    hidden_size: int
    conv_kernel: Sequence[int]
    conv_stride: Sequence[int]
    layerdrop: float
    mask_time_prob: float
    mask_feature_prob: float
    add_adapter: bool

    def to_dict(self) -> dict[str, object]: ...


class _Layer(Protocol):
    """Convolution of samples, or of what the one before puts out."""

    conv: nn.Conv1d
    layer_norm: nn.GroupNorm  # of the first one, where there is any
    activation: nn.Module

    def __call__(self, h: Tensor) -> Tensor: ...


class _Convolutions(Protocol):
    conv_layers: Sequence[_Layer]

    def requires_grad_(self, requires_grad: bool) -> object: ...


class _Block(Protocol):
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Tensor]


class _Hidden(Protocol):
    last_hidden_state: Tensor


class _Transformer(Protocol):
    layers: Sequence[_Block]
    layer_norm: nn.Module
    pos_conv_embed: nn.Module

    def __call__(self, hidden: Tensor, *, attention_mask: Tensor | None) -> _Hidden: ...


class WaveformEncoderParams(EncoderParams):
    kind: Literal["waveform_encoder"]
    layer: PositiveInt | None  # block whose hidden states are the output; null = the last, behind the final norm
    freeze_convolutions: bool  # of samples, below the first block; as is usual
    dropout: float | None = Field(ge=0, lt=1)  # everywhere in the blocks; null = as the weights' config has it

    def require_network(self, network: "NetworkParams") -> None:
        kinds, weights = ("waveform_encoder", "sonolex"), network.pretrained.kind if network.pretrained else None
        if weights not in kinds:
            raise ValueError(
                f"pretrained: expected one of the kinds {', '.join(kinds)} with encoder.kind waveform_encoder, whose form "
                f"is that of its weights, found {weights or 'null'}; name them, as recipes/waveform_encoder.yaml does"
            )
        if not isinstance(network.input, FramesParams) or network.input.normalisation != "none":
            found = network.input.normalisation if isinstance(network.input, FramesParams) else network.input.kind
            raise ValueError(
                "input: expected kind frames with normalisation none with encoder.kind waveform_encoder, which normalises "
                f"each clip itself where its weights were trained so, found {found}; set it so"
            )


class WaveformEncoder(Encoder):
    """Maps frames of samples (B, T, H) to hidden states (B, S, D), of which there are a few less than frames."""

    Params = WaveformEncoderParams
    keeps_positions = supports_patchout = False
    supports_activation_checkpointing = reads_samples = True

    def __init__(self, params: WaveformEncoderParams, stem: Stem, metadata: WaveformEncoderMetadata) -> None:
        super().__init__(params, stem)
        require_transformers("encoder.kind waveform_encoder")
        config = _config(metadata, params.dropout)
        sizes = self._sizes = Convolutions(tuple(config.conv_kernel), tuple(config.conv_stride))
        self.num_features, self._normalises = config.hidden_size, metadata["normalises"]
        self._has_group_norm = config.to_dict().get("feat_extract_norm") == "group"
        self.num_rows, self.centre = 1, sizes.win_length / sizes.hop_length / 2 - 0.5
        self._lost = -((sizes.hop_length - sizes.win_length) // sizes.hop_length)  # frames without a state of their own
        self.convolutions, self.projection, self.transformer = _build(config)
        _cut(self.transformer, config, params.layer)
        if config.model_type == "data2vec-audio":
            self.transformer.pos_conv_embed = _Positions(self.transformer.pos_conv_embed)
        if config.model_type == "wavlm":
            self.unadaptable = _READ_DIRECTLY
        self.convolutions.requires_grad_(not params.freeze_convolutions)

    @classmethod
    def build(cls, params: EncoderParams, stem: Stem, pretrained: PretrainedMetadata) -> "WaveformEncoder":
        assert isinstance(params, WaveformEncoderParams)
        return cls(params, stem, pretrained["waveform_encoder"])

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        samples = self._normalised(x, mask).flatten(1)  # (B, T * H)
        lengths = None if mask is None else mask.sum(1)
        missing = self._lost + 1 - x.shape[1]
        if missing > 0:  # a clip without a state is padded to one
            samples = F.pad(samples, (0, missing * x.shape[2]))
        convolved = self._convolve(samples, lengths)
        projected = self.projection(convolved.transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        real = None if mask is None else self.real_time_steps(mask)
        return self._run_blocks(hidden, real), real

    def real_time_steps(self, real: Tensor) -> Tensor:
        count = max(real.shape[1] - self._lost, 1)
        return torch.arange(count, device=real.device) < (real.sum(1, keepdim=True) - self._lost).clamp(min=1)

    def _normalised(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return frames of samples normalised over each clip, with zeros behind its end."""
        real = torch.ones_like(x[:, :, :1]) if mask is None else mask[:, :, None].to(x.dtype)
        if self._normalises:
            count = real.sum((1, 2), keepdim=True) * x.shape[2]
            x = x - (x * real).sum((1, 2), keepdim=True) / count
            variance = (x * real).square().sum((1, 2), keepdim=True) / count
            x = x / (variance + _SMALLEST_VARIANCE).sqrt()
        return x if mask is None else x.masked_fill(~mask[:, :, None], 0.0)

    def _convolve(self, samples: Tensor, frames: Tensor | None) -> Tensor:
        """Return the convolutions (B, C, S) of samples; `frames` (B,) are those of each clip, None = all of one length."""
        h, lengths = samples[:, None], None
        if frames is not None:
            lengths = frames.clamp(min=self._lost + 1) * self._sizes.hop_length
        for layer, kernel, stride in zip(self.convolutions.conv_layers, *self._sizes, strict=True):
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            grouped = self._has_group_norm and layer is self.convolutions.conv_layers[0]
            h = layer(h) if lengths is None or not grouped else _convolve_and_norm(layer, h, lengths)
        return h

    def _run_blocks(self, hidden: Tensor, real: Tensor | None) -> Tensor:
        for block in self.transformer.layers:
            block.gradient_checkpointing = self.activation_checkpointing
            block._gradient_checkpointing_func = _checkpointed
        if isinstance(self.transformer.pos_conv_embed, _Positions):
            self.transformer.pos_conv_embed.real = real
        return self.transformer(hidden, attention_mask=real).last_hidden_state


class _Positions(nn.Module):
    """Position embedding of data2vec audio: several convolutions, each of which reads zeros behind a clip's end."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.layers = cast(nn.ModuleList, embedding.layers)
        self.real: Tensor | None = None  # (B, S) of the batch, None = all

    def forward(self, hidden: Tensor) -> Tensor:
        h = hidden.transpose(1, 2)
        for layer in self.layers:
            h = layer(h)
            if self.real is not None:
                h = h * self.real[:, None].to(h.dtype)
        return h.transpose(1, 2)


def _config(metadata: WaveformEncoderMetadata, dropout: float | None) -> _Config:
    """Return the encoder's config without its masking and layer drop, with another dropout if one is given."""
    from transformers import AutoConfig

    settings = {key: value for key, value in metadata["config"].items() if key != "model_type"}
    config = cast(_Config, AutoConfig.for_model(str(metadata["config"]["model_type"]), **settings))
    config.layerdrop = config.mask_time_prob = config.mask_feature_prob = 0.0
    config.add_adapter = False
    if dropout is not None:
        for name in _DROPOUTS:
            setattr(config, name, dropout)
    return config


def _build(config: _Config) -> tuple[_Convolutions, nn.Module, _Transformer]:
    """Return the parts of an encoder with random weights, in the order of PARTS."""
    from transformers import AutoModel

    build: Callable[[_Config], nn.Module] = AutoModel.from_config
    model = build(config).float()
    parts = model.feature_extractor, model.feature_projection, model.encoder
    return cast(tuple[_Convolutions, nn.Module, _Transformer], parts)


def _cut(transformer: _Transformer, config: _Config, layer: int | None) -> None:
    """Leave out what is behind the output of a block; None keeps the norm behind the last one."""
    if layer is None:
        return
    transformer.layers = transformer.layers[:layer]
    if config.to_dict().get("do_stable_layer_norm"):  # else the norm is before the blocks
        transformer.layer_norm = nn.Identity()


def _convolve_and_norm(layer: _Layer, h: Tensor, lengths: Tensor) -> Tensor:
    """Return a convolution of (B, C, S) with its group norm over the real positions of clips, of `lengths` (B,)."""
    norm = layer.layer_norm
    h = layer.conv(h).float()
    real = (torch.arange(h.shape[2], device=h.device) < lengths[:, None])[:, None].to(h.dtype)
    count = lengths[:, None, None].to(h.dtype)
    centred = h - (h * real).sum(2, keepdim=True) / count
    variance = (centred * real).square().sum(2, keepdim=True) / count
    scaled = centred / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]
    activated: Tensor = layer.activation(scaled)
    return activated


def _checkpointed(block: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Run a block of transformers so that its activations are computed again in the backward pass."""
    return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
