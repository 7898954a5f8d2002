"""Checks of the settings that name parts or weights of networks, on outlines of networks without weights."""

from pathlib import Path

import torch

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.check_params import Experiment
from pipeline.errors import SonolexError
from pipeline.evaluation.hidden_states import require_layer
from pipeline.models.base import NOT_NORMALISED
from pipeline.models.checkpoint_formats.trained_model import TrainedModelCheckpoint
from pipeline.models.network import Network, NetworkParams, fit_normalisation, open_pretrained_weights
from pipeline.models.weight_groups import weight_groups
from pipeline.training.freezing import require_groups
from pipeline.training.lora import require_targets

_TOKENS = 2  # of a vocabulary; its size changes no name
# Of windows, decoded tokens and texture statistics, where no artifact says otherwise.
_SOME_LEVELS: InputMetadata = {"frame_rate": 100.0, "frames_per_token": 1, "log_unit": 1.0, "texture_floor": 0.0}


def network_mistakes(experiment: Experiment, params_path: Path) -> list[str]:
    """Name the groups of `train.freeze` and the targets of `train.lora` that a network of the experiment has not."""
    train = experiment.sections["train"]
    if not train.freeze.stages and train.lora is None:
        return []
    mistakes = []
    for name, params in _networks(experiment).items():
        try:
            network = outline(experiment, params)
            require_groups(weight_groups(network), train.freeze, "train.freeze")
            if train.lora is not None:
                require_targets(network, train.lora, "train.lora")
        except SonolexError as error:
            mistakes.append(f"{params_path}: {error} (models.{name})")
    return mistakes


def layer_mistakes(experiment: Experiment, params_path: Path) -> list[str]:
    """Name the layers of `features.hidden_states` that the network has not, or that have no time steps."""
    mistakes = []
    grid = experiment.sections["experiment"]
    for name in grid.vocabularies:
        hidden = experiment.vocabularies[name].hidden_states
        if hidden is None or hidden.layer is None:
            continue
        params = experiment.models[grid.model(hidden.model).entry]
        assert isinstance(params, NetworkParams)  # as the params are checked
        try:
            with torch.device("meta"):
                require_layer(outline(experiment, params), hidden.layer)
        except SonolexError as error:
            mistakes.append(f"{params_path}: vocabularies.{name}.features.hidden_states.{error}")
    return mistakes


def weights_mistakes(experiment: Experiment, params_path: Path) -> list[str]:
    """Name the networks of the experiment whose weights are not there, or do not fit where the check opens them.

    Other weights may be large, and are opened in training alone; classes are known from the corpus.
    """
    mistakes = []
    for name, params in _networks(experiment).items():
        if params.pretrained is not None:
            try:
                params.pretrained.require_source()
                _require_weights(params, experiment.sections["spectrogram"].metadata)
            except SonolexError as error:
                mistakes.append(f"{params_path}: models.{name}: {error}")
    return mistakes


def _require_weights(params: NetworkParams, front_end: SpectrogramMetadata) -> None:
    """Raise SonolexError unless weights that are cheap to open fit a network, but for its head."""
    assert params.pretrained is not None
    if params.pretrained.kind not in ("sonolex", "waveform_encoder"):
        return
    checkpoint = open_pretrained_weights(params, front_end)
    if not isinstance(checkpoint, TrainedModelCheckpoint):
        return
    fit_normalisation(params, lambda: checkpoint.statistics, checkpoint)
    metadata = checkpoint.model.metadata["input"]  # of the same frames or tokens, as was checked
    checkpoint.weights_of_parts(_build(params, metadata), params)


def outline(experiment: Experiment, params: NetworkParams) -> Network:
    """Build a network of the experiment without memory for its weights; its vocabulary has few tokens."""
    bands = experiment.sections["spectrogram"].metadata["n_mels"]
    metadata: InputMetadata = {"n_mels": bands, "log_floor": 0.0, "normalisation": NOT_NORMALISED}
    if params.pretrained is not None and (form := params.pretrained.form):
        metadata["pretrained"] = form
    if params.reads == "tokens":
        vocabularies = [experiment.vocabularies[entry] for entry in experiment.sections["experiment"].vocabularies]
        books = min(vocabulary.num_codebooks for vocabulary in vocabularies)
        metadata = {"n_mels": bands, "vocabulary_size": _TOKENS, "num_codebooks": books, "bands": [[0, bands]] * books}
    return _build(params, metadata)


def _build(params: NetworkParams, metadata: InputMetadata) -> Network:
    with torch.device("meta"):
        return Network(params, {**_SOME_LEVELS, **metadata}, 2, "sigmoid")


def _networks(experiment: Experiment) -> dict[str, NetworkParams]:
    """Return the networks of the experiment by their entries."""
    grid = experiment.sections["experiment"]
    found = {name: experiment.models[name] for name in grid.entries}
    return {name: params for name, params in found.items() if isinstance(params, NetworkParams)}
