"""Registries of models and of the parts of networks: names of `kind` below `models`, and their classes.

A classical model is one file and one line of `BASELINES`; a part of a network one file and one line of its registry. All are
loaded on first use, so that a classical model starts without torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ParamsError, spell
from pipeline.models.base import ModelParams
from pipeline.params import PARAMS_PATH, read_params, validate_params
from pipeline.registry import Registry

if TYPE_CHECKING:
    from pipeline.models.baselines.base import Baseline
    from pipeline.models.baselines.texture_inputs import TextureInput
    from pipeline.models.checkpoint_formats.checkpoint import Checkpoint
    from pipeline.models.network import Network
    from pipeline.models.parts import Encoder, Head, Input, Stem

NETWORKS: "Registry[type[Network]]" = Registry("network", {"network": "pipeline.models.network:Network"})

BASELINES: "Registry[type[Baseline]]" = Registry(
    "classical model",
    {
        "bag_of_tokens": "pipeline.models.baselines.bag_of_tokens:BagOfTokens",
        "ngram": "pipeline.models.baselines.ngram:NgramClassifier",
        "frame_statistics": "pipeline.models.baselines.frame_statistics:FrameStatistics",
        "texture_statistics": "pipeline.models.baselines.textures:TextureStatistics",
        "majority": "pipeline.models.baselines.majority:Majority",
    },
)

INPUTS: "Registry[type[Input]]" = Registry(
    "input",
    {
        "frames": "pipeline.models.inputs.frames:Frames",
        "tokens": "pipeline.models.inputs.tokens:Tokens",
        "decoded_tokens": "pipeline.models.inputs.decoded_tokens:DecodedTokens",
    },
)

STEMS: "Registry[type[Stem]]" = Registry(
    "stem",
    {
        "patches": "pipeline.models.stems.patches:Patches",
        "convolution": "pipeline.models.stems.convolution:Convolution",
        "convolution_1d": "pipeline.models.stems.convolution:TimeConvolution",
        "linear": "pipeline.models.stems.linear:Linear",
        "identity": "pipeline.models.stems.identity:Identity",
        "fixed_length": "pipeline.models.stems.identity:FixedLength",
        "textures": "pipeline.models.stems.textures:Textures",
    },
)

ENCODERS: "Registry[type[Encoder]]" = Registry(
    "encoder",
    {
        "transformer": "pipeline.models.encoders.transformer:Transformer",
        "conformer": "pipeline.models.encoders.conformer:Conformer",
        "lstm": "pipeline.models.encoders.lstm:Lstm",
        "cnn": "pipeline.models.encoders.cnn:Cnn",
        "timm": "pipeline.models.encoders.timm_network:TimmNetwork",
        "waveform_encoder": "pipeline.models.encoders.waveform_encoder:WaveformEncoder",
        "identity": "pipeline.models.encoders.identity:Identity",
    },
)

HEADS: "Registry[type[Head]]" = Registry(
    "head",
    {
        "pooled": "pipeline.models.heads.pooled:Pooled",
        "class_token": "pipeline.models.heads.class_token:ClassToken",
        "attention": "pipeline.models.heads.attention:AttentionPooling",
        "flatten": "pipeline.models.heads.flatten:Flatten",
        "deep": "pipeline.models.heads.deep:Deep",
        "per_class": "pipeline.models.heads.deep:PerClass",
    },
)

CHECKPOINT_FORMATS: "Registry[type[Checkpoint]]" = Registry(
    "checkpoint format",
    {
        "original": "pipeline.models.checkpoint_formats.original:OriginalCheckpoint",
        "huggingface": "pipeline.models.checkpoint_formats.huggingface:HuggingFaceCheckpoint",
        "imagenet": "pipeline.models.checkpoint_formats.imagenet:ImageNetCheckpoint",
        "timm": "pipeline.models.checkpoint_formats.timm_weights:TimmCheckpoint",
        "psla": "pipeline.models.checkpoint_formats.psla:PslaCheckpoint",
        "waveform_encoder": "pipeline.models.checkpoint_formats.waveform_encoder:WaveformEncoderCheckpoint",
        "sonolex": "pipeline.models.checkpoint_formats.trained_model:TrainedModelCheckpoint",
    },
)

TEXTURE_INPUTS: "Registry[type[TextureInput]]" = Registry(
    "texture input",
    {
        "frames": "pipeline.models.baselines.texture_inputs:Frames",
        "tokens": "pipeline.models.baselines.texture_inputs:DecodedTokens",
    },
)


def load_model_params(name: str, path: Path = PARAMS_PATH) -> ModelParams:
    """Load the section `models.<name>` as the Params of its kind. Raises ParamsError."""
    models = read_params(path).get("models") or {}
    if name not in models:
        raise ParamsError(f"{path}: models.{name}: expected a section of this name, found only: {', '.join(models)}")
    return validate_model_params(name, models[name], path)


def validate_model_params(name: str, value: object, path: Path = PARAMS_PATH) -> ModelParams:
    """Check one model's plain section."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or (kind not in NETWORKS and kind not in BASELINES):
        known, found = ", ".join([*NETWORKS, *BASELINES]), "none" if kind is None else spell(kind)
        raise ParamsError(f"{path}: models.{name}.kind: expected one of {known}, found {found}")
    params: type[ModelParams] = BASELINES[kind].Params if kind in BASELINES else NETWORKS[kind].Params
    return validate_params(params, value, f"models.{name}", path)
