"""A stored model as one torch module: from waveforms, frames or tokens to logits, for exported graphs.

    waveforms --front_end--> frames --search--> tokens --classifier--> logits

Models that read frames have no search. Clips of a batch have one length, so that there is no mask; lengths may be symbols.

Conventions: waveforms (batch, sample) float32 in [-1, 1], mono, at the front end's rate; frames (batch, frame, mel) float32
in the front end's units; tokens (batch, codebook, token) int64; logits (batch, class) float32.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.artifacts.clips import Link, link_of
from pipeline.artifacts.model import ModelMetadata, TrainedModel, open_members
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.models.baselines.torch_modules import baseline_module
from pipeline.models.baselines.torch_textures import MIN_FRAMES
from pipeline.models.network import Network
from pipeline.models.registry import BASELINES
from pipeline.spectrogram.torch_front_end import front_end_module
from pipeline.training.batches import normalise
from pipeline.vocabulary.torch_search import TokenSearch

Start = Literal["waveform", "frames", "tokens"]  # what a module reads


class FrameRange(NamedTuple):
    """Numbers of frames, or of tokens per codebook where it starts from these, that a module reads."""

    least: int
    most: int | None  # None = any

    def frames_of(self, stack: int) -> "FrameRange":
        """Return the numbers of frames that have so many tokens, each of `stack` frames, the last perhaps of fewer."""
        return FrameRange((self.least - 1) * stack + 1, None if self.most is None else self.most * stack)


class SoundClassifier(nn.Module):
    """Module that maps waveforms, frames or tokens to logits."""

    def __init__(self, front_end: nn.Module, search: nn.Module, classifier: nn.Module, lengths: FrameRange) -> None:
        """Build from the steps; those that are left out are `nn.Identity`."""
        super().__init__()
        self.front_end, self.search, self.classifier = front_end, search, classifier
        self.lengths = lengths

    def encode(self, inputs: Tensor) -> Tensor:
        """Return what the classifier reads: frames or tokens."""
        encoded: Tensor = self.search(self.front_end(inputs))
        return encoded

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encode(inputs))
        return logits


def sound_classifier(
    model: TrainedModel, vocabulary: Vocabulary | None = None, start: Start = "waveform"
) -> SoundClassifier:
    """Return a stored model as a module that reads waveforms, or frames or tokens; it predicts as the pipeline does.

    A model of tokens needs its vocabulary, unless it starts from tokens. Raises SonolexError for a model, a front end or a
    vocabulary that has no module.
    """
    reads = model.metadata["reads"]
    if start == "tokens" and reads != "tokens":
        raise SonolexError(f"{model.path}: expected a model of tokens to start from them, found one that reads {reads}")
    classifier, lengths = _classifier(model)  # first, since no vocabulary helps a model that has no module
    front_end: nn.Module = front_end_module(model.metadata["front_end"]) if start == "waveform" else nn.Identity()
    search: nn.Module = nn.Identity()
    if reads == "tokens" and start != "tokens":
        searched = _require_vocabulary(model, vocabulary)
        search, lengths = TokenSearch(searched), lengths.frames_of(searched.space.stack)
    return SoundClassifier(front_end, search, classifier, lengths).eval()


def _require_vocabulary(model: TrainedModel, vocabulary: Vocabulary | None) -> Vocabulary:
    """Return the vocabulary. Raises SonolexError unless it is the one that the model was trained on."""
    found = None if vocabulary is None else vocabulary.digest()
    if vocabulary is None or found != model.metadata["source"]:
        where = "none" if vocabulary is None else f"{vocabulary.path} of digest {found}"
        raise SonolexError(
            f"{model.path}: expected the vocabulary of its training, of digest {model.metadata['source']}, found {where}; "
            "pass the vocabulary of the model's experiment and fold (--vocabulary data/vocabulary/NAME/FOLD.zarr)"
        )
    if vocabulary.external:
        raise SonolexError(
            f"{model.path}: expected tokens that are computed from sound, found a vocabulary of kind external, whose tokens "
            "another program made; export the model from its tokens on (--input tokens)"
        )
    return vocabulary


def _classifier(model: TrainedModel) -> tuple[nn.Module, FrameRange]:
    params = params_of(model)
    if params.kind in BASELINES:
        try:
            module = baseline_module(params, model.weights, model.metadata["front_end"]["n_mels"])
        except SonolexError as error:
            raise SonolexError(f"{model.path}: {error}") from None
        return module, FrameRange(MIN_FRAMES, None)
    networks = [build_network(member) for member in open_members(model)]
    for network in networks:
        _require_no_recurrence(model, network)
    return NetworkEnsemble(networks, model.metadata), _frame_range(networks[0])


def _frame_range(network: Network) -> FrameRange:
    """Return the lengths of clips that a graph reads: with windows, clips that are not shorter than one."""
    if network.windows is not None:
        return FrameRange(network.windows.length, None)
    return FrameRange(network.stem.min_frames, network.stem.max_frames)


def _require_no_recurrence(model: TrainedModel, network: Network) -> None:
    if any(isinstance(module, nn.LSTM) for module in network.modules()):
        raise SonolexError(
            f"{model.path}: expected a model without a recurrent network, found {describe_model(model)}: "
            "torch.export unrolls an LSTM for clips of one length; export a transformer or a convolutional network"
        )


class NetworkEnsemble(nn.Module):
    """A network that includes the normalisation of its input, or the mean of those of kept epochs."""

    def __init__(self, networks: Iterable[Network], metadata: ModelMetadata) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._normalisation = metadata["input"]["normalisation"]
        self._front_end: SpectrogramMetadata = {**metadata["front_end"], "dtype": "float32"}  # frames are restored
        self._average = _AVERAGES[link_of(metadata)]

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            inputs = normalise(inputs, None, self._front_end, self._normalisation)
        logits = [network(inputs, None) for network in self.networks]
        return self._average(torch.stack(logits)) if len(logits) > 1 else logits[0]


def _average_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the members' mean softmax, of logits (member, batch, class)."""
    return logits.log_softmax(dim=2).logsumexp(dim=0) - torch.tensor(float(logits.shape[0])).log()


def _average_sigmoid(logits: Tensor) -> Tensor:
    """Return the logits of the members' mean sigmoid, of logits (member, batch, class)."""
    log_sigmoid = nn.functional.logsigmoid
    return log_sigmoid(logits).logsumexp(dim=0) - log_sigmoid(-logits).logsumexp(dim=0)


_AVERAGES: dict[Link, Callable[[Tensor], Tensor]] = {"softmax": _average_softmax, "sigmoid": _average_sigmoid}
