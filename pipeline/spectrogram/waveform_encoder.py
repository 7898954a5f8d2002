"""Hidden states of a pretrained waveform encoder as frames: wav2vec 2.0, HuBERT, WavLM or data2vec audio.

The encoders are those of the package transformers (Baevski et al., 2020, arXiv 2006.11477; Hsu et al., 2021, arXiv
2106.07447; Chen et al., 2022, arXiv 2110.13900; Baevski et al., 2022, arXiv 2202.03555). Their weights are frozen. K-means
on a layer's states gives HuBERT's units.

Conventions: waveforms (sample,) float32 in [-1, 1], scaled to mean 0 and variance 1 where the encoder's preprocessor says
so. Frames are (frame, dimension) float32, in the place of (frame, mel): the encoder's convolutions see frame i from sample
`hop_length` * i on, over `win_length` samples; its context is the whole clip. Clips are computed one by one, so that nothing
is padded. Layer 0 is the input of the first transformer block, layer n the output of block n.
"""

import math
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt

from pipeline.artifacts.spectrogram import HIDDEN_STATE, FrontEndMetadata
from pipeline.errors import SonolexError
from pipeline.spectrogram.encoder_files import EncoderFiles, LoadedEncoder, load_encoder, open_encoder
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion

_WHERE = "spectrogram.front_end.source"


class WaveformEncoderParams(FrontEndSection):
    """Settings of the front end; all else is in the encoder's files."""

    kind: Literal["waveform_encoder"]
    source: str = Field(min_length=1)  # a folder as save_pretrained writes it, or a repository of the Hugging Face hub
    layer: NonNegativeInt  # whose hidden states are the frames
    digest: str | None  # first 32 hex digits of the SHA-256 of the weights file; null = not checked

    has_levels: ClassVar[bool] = False

    @property
    def is_log_mel(self) -> bool:
        return False

    @property
    def frame_rate(self) -> float:
        encoder = open_encoder(self.source, _WHERE)
        return encoder.sample_rate / encoder.convolutions.hop_length


class WaveformEncoder(FrontEnd):
    """Front end that computes hidden states; the encoder is loaded with the first waveform."""

    Params = WaveformEncoderParams
    invertible: ClassVar[bool] = False
    empty_bands: list[int] = []  # noqa: RUF012 - of the instance

    def __init__(self, params: WaveformEncoderParams) -> None:
        """Read the encoder's config. Raises SonolexError where files are missing, changed or of another model."""
        self._params, self._encoder = params, open_encoder(params.source, _WHERE)
        if params.digest not in (None, self._encoder.digest):
            raise SonolexError(
                f"spectrogram.front_end.digest: {self._encoder.weights}: expected {params.digest}, found "
                f"{self._encoder.digest}; put the file back, or the digest found into params.yaml if it is meant, and all "
                "frames are computed again"
            )
        if params.layer > self._encoder.depth:
            raise SonolexError(
                f"spectrogram.front_end.layer: expected 0 to {self._encoder.depth}, the blocks of {params.source}, found "
                f"{params.layer}; name one of these"
            )
        self.min_samples = self._encoder.convolutions.win_length

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record, the digest of the weights included."""
        encoder, convolutions = self._encoder, self._encoder.convolutions
        return {
            "front_end": "waveform_encoder",
            "units": HIDDEN_STATE,
            "sample_rate": encoder.sample_rate,
            "n_fft": convolutions.win_length,
            "win_length": convolutions.win_length,
            "hop_length": convolutions.hop_length,
            "n_mels": encoder.width,
            "f_min": 0.0,
            "f_max": encoder.sample_rate / 2,
            "log_floor": 0.0,
            "frame_rate": encoder.sample_rate / convolutions.hop_length,
            "params": self._params.model_dump() | {"digest": encoder.digest},
        }

    @property
    def inversion(self) -> Inversion:
        """Return where frames lie in a waveform; nothing makes a waveform of them."""
        length = self._encoder.convolutions.win_length
        return Inversion(
            filters=np.empty((self._encoder.width, 0), np.float32),
            window=np.ones(length),
            log_base=math.e,
            pre_emphasis=0.0,
            before=length // 2,
        )

    def num_frames(self, num_samples: int) -> int:
        return self._encoder.convolutions.num_frames(num_samples)

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return hidden states (frame, dimension) of a waveform (sample,), or (clip, frame, dimension) of (clip, sample)."""
        if waveforms.ndim > 1:
            return np.stack([self.log_mel(waveform) for waveform in waveforms])
        import torch

        samples = waveforms.astype(np.float32, copy=False)
        if self._encoder.normalises:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        model = _load_model(self._encoder, self._params.layer)
        with torch.inference_mode():
            states = model(torch.from_numpy(samples)[None], output_hidden_states=True).hidden_states
        return np.asarray(states[self._params.layer][0].numpy(), dtype=np.float32)


@lru_cache(maxsize=2)
def _load_model(encoder: EncoderFiles, layer: int) -> LoadedEncoder:
    """Return the encoder with the blocks up to the layer, and one more, whose input the layer is."""
    model = load_encoder(encoder, _WHERE)
    model.encoder.layers = model.encoder.layers[: layer + 1]
    return model.eval()
