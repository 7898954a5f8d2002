"""Artifact of a trained model: a folder with `weights.safetensors`, and `model.json` with all that prediction needs.

With `train.checkpoint_ensemble` there is also a file `epochs/<epoch>.safetensors` for each listed epoch, and the mean of
these predicts. Prediction needs nothing from params.yaml: the folder holds the model's params, the class list, the input's
metadata and normalisation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import numpy as np

from pipeline.artifacts.clips import LogitsMetadata
from pipeline.artifacts.settings import SETTINGS, without_folders
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.artifacts.tables import metadata_digest
from pipeline.artifacts.weights import EPOCHS, WeightsCard, WeightsSchema

MEMBERS = "members"  # folder of a bundle that has a folder for each of its models

Reads = Literal["frames", "tokens"]  # the artifact that a model's clips come from


class Normalisation(TypedDict):
    """Normalisation of log-mel frames: (x - mean) / (std_scale * std); `clip` uses each clip's own mean and std."""

    kind: str  # corpus, clip, none, pretrained or constants
    std_scale: float
    mean: float
    std: float
    channels: NotRequired[
        list[tuple[float, float]]
    ]  # mean and std of each, of frames with several; the first's are above


class WaveformEncoderMetadata(TypedDict):
    """Form of a waveform encoder of the package transformers, and what it does to samples first."""

    config: dict[str, object]  # content of config.json
    sample_rate: int  # Hz
    normalises: bool  # each clip to mean 0 and variance 1


class PretrainedMetadata(TypedDict, total=False):
    """Record, in a trained model, of the published weights, or those of another model, that it was initialised from."""

    digest: str  # of the weights file
    norm_epsilons: list[float]  # of the encoder's layer norms and of the head's; absent where the defaults hold
    free_head_weights: bool  # weights of attention heads need not sum to 1; absent where they do
    waveform_encoder: WaveformEncoderMetadata  # absent where the encoder is another


class InputMetadata(TypedDict, total=False):
    """Metadata of the data that a model is built for; stored with it."""

    n_mels: int  # frames: values of one
    channels: int  # frames of several channels: their number
    log_floor: float  # frames: the front end's smallest value
    frame_rate: float  # Hz, of frames or of tokens: networks with windows or on texture statistics
    log_unit: float  # one unit of the front end in ln(power): networks on texture statistics
    texture_floor: float  # ln(power), below which is silence: networks on texture statistics
    normalisation: Normalisation  # networks
    vocabulary_size: int  # tokens
    num_codebooks: int  # tokens
    bands: list[list[int]]  # tokens: [first, last) feature of each codebook's codes
    frames_per_token: int  # networks on decoded tokens, which also have `n_mels` and `log_floor`
    pretrained: PretrainedMetadata  # networks initialised from stored weights
    masked_pretraining: dict[str, object]  # networks initialised from it: metadata of its artifact


class ModelMetadata(LogitsMetadata):
    """Metadata of a trained model, without what names its weights."""

    model: str
    params: dict[str, Any]  # the model's own section, as validated
    classes: list[str]
    reads: Reads
    input: InputMetadata  # of the data that it was built for
    source: str  # digest of the vocabulary (tokens), or empty
    front_end: SpectrogramMetadata  # behind the input
    fold: str
    seed: int
    num_parameters: int
    clips_seen: int


class ModelCard(ModelMetadata, WeightsCard):
    """Content of `model.json`, without its own digest."""


MODEL = WeightsSchema(
    card="model.json",
    stage="train_*",
    metadata=ModelCard,
)


@dataclass(frozen=True)
class TrainedModel:
    """An opened model folder: arrays by name, and the metadata."""

    path: Path
    weights: dict[str, np.ndarray]
    metadata: ModelCard


def write_model(
    path: Path,
    weights: Mapping[str, np.ndarray],
    metadata: ModelMetadata,
    epochs: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write a model folder in one step, with the weights of `epochs` of an ensemble; `metadata` is without digests."""
    MODEL.write(path, weights, metadata, epochs or {})


def open_model(path: Path) -> TrainedModel:
    """Open a model folder, and check its metadata and the digest of its weights."""
    return TrainedModel(path, *MODEL.open(path))


def copy_model(model: TrainedModel, path: Path) -> None:
    """Write an opened model as another folder, which may leave this machine, without its kept epochs."""
    write_model(path, model.weights, portable_metadata(model))


def portable_metadata(model: TrainedModel) -> ModelMetadata:
    """Return the metadata without what names the weights, and with names in place of the paths of this machine."""
    metadata = {key: value for key, value in model.metadata.items() if key not in ("weights", EPOCHS)}
    portable = metadata | {key: without_folders(metadata[key]) for key in ("params", SETTINGS) if key in metadata}
    return cast(ModelMetadata, portable)


def open_members(model: TrainedModel) -> Iterator[TrainedModel]:
    """Yield the models whose mean predicts: one per kept epoch, or the model itself where none is kept."""
    kept = sorted(map(int, model.metadata.get(EPOCHS, {})))
    for epoch in kept:
        yield replace(model, weights=MODEL.open_epoch(model.path, model.metadata, epoch))
    if not kept:
        yield model


def count_predicting(weights: Mapping[str, np.ndarray], epochs: Mapping[int, Mapping[str, np.ndarray]]) -> int:
    """Return the number of parameters that predict: of the weights, or of all kept epochs together."""
    members = list(epochs.values()) or [weights]
    return sum(array.size for member in members for array in member.values() if array.dtype.kind == "f")


def predicting_digest(metadata: WeightsCard) -> str:
    """Return the digest of the weights that predict: of their file, or of the digests of all kept epochs."""
    return metadata_digest(metadata[EPOCHS]) if EPOCHS in metadata else str(metadata["weights"])


def read_card(path: Path) -> ModelCard:
    """Read the metadata of a model folder without its weights, and check its digest."""
    return MODEL.read_card(path)
