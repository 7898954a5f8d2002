"""Checkpoint format of waveform encoders: wav2vec 2.0, HuBERT, WavLM or data2vec audio of the package transformers.

`source` is a folder as save_pretrained writes it, or a repository of the Hugging Face hub. A trained model records the
encoder's config, so that prediction needs none of its files.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.artifacts.model import PretrainedMetadata, WaveformEncoderMetadata
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams
from pipeline.models.checkpoint_formats.files import require_shapes
from pipeline.models.encoders.waveform_encoder import PARTS, WaveformEncoderParams
from pipeline.spectrogram.encoder_files import EncoderFiles, load_encoder, open_encoder

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams

_WHERE = "pretrained.source"


class WaveformWeightsParams(CheckpointParams):
    kind: Literal["waveform_encoder"]
    source: str = Field(min_length=1)
    highest_rate: ClassVar[float] = 1e-4  # of wav2vec 2.0 on ten hours of speech
    log_mel_only: ClassVar[bool] = False

    @property
    def form(self) -> PretrainedMetadata:
        return _form(open_encoder(self.source, _WHERE))

    def require_source(self) -> None:
        open_encoder(self.source, _WHERE)

    def require_network(self, network: "NetworkParams") -> None:
        if not isinstance(network.encoder, WaveformEncoderParams):
            raise ValueError(
                "pretrained: weights of a waveform encoder need encoder.kind waveform_encoder, found "
                f"{network.encoder.kind}; recipes/waveform_encoder.yaml has it, or set pretrained to null"
            )


class WaveformEncoderCheckpoint(Checkpoint):
    Params = WaveformWeightsParams

    def __init__(self, params: WaveformWeightsParams) -> None:
        self._files = open_encoder(params.source, _WHERE)
        self.where, self.digest = str(self._files.weights), self._files.digest
        self.require_digest(params.digest)

    @property
    def metadata(self) -> PretrainedMetadata:
        return _form(self._files)

    def require_run(self, params: "NetworkParams", front_end: FrontEndMetadata, vocabulary: str | None) -> None:
        """Raise SonolexError for samples at another rate or in other frames, and for a layer that the encoder has not."""
        files, encoder = self._files, params.encoder
        assert isinstance(encoder, WaveformEncoderParams)  # checked by NetworkParams
        expected = {"sample_rate": files.sample_rate, "hop_length": files.convolutions.hop_length}
        for key, value in expected.items():
            if front_end.get(key) != value:
                raise SonolexError(
                    f"pretrained: {self.where}: {key}: expected {value}, that of the encoder, found {front_end.get(key)}; "
                    f"set spectrogram.front_end.{key} to {value}"
                )
        if files.settings.get("conv_pos_batch_norm"):
            raise SonolexError(
                f"pretrained: {self.where}: config.json: expected conv_pos_batch_norm false, found true, a batch norm that "
                "padding has an effect on; use another encoder, or the front end waveform_encoder"
            )
        if encoder.layer is not None and encoder.layer > files.depth:
            raise SonolexError(
                f"pretrained: {self.where}: encoder.layer: expected 1 to {files.depth}, the blocks of the encoder, found "
                f"{encoder.layer}; name one of these, or null for the last"
            )

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        stored = load_encoder(self._files, _WHERE).state_dict()
        expected = network.encoder.state_dict()
        found = {
            f"{ours}.{name.removeprefix(f'{theirs}.')}": values.float()
            for ours, theirs in PARTS.items()
            for name, values in stored.items()
            if name.startswith(f"{theirs}.")
        }
        read = {
            name: values for name, values in found.items() if name in expected
        }  # blocks behind the layer are left out
        require_shapes(expected, read, self.where, "encoder", "fetch the encoder again")
        network.encoder.load_state_dict(read)


def _form(files: EncoderFiles) -> PretrainedMetadata:
    encoder = WaveformEncoderMetadata(config=files.settings, sample_rate=files.sample_rate, normalises=files.normalises)
    return PretrainedMetadata(digest=files.digest, waveform_encoder=encoder)
