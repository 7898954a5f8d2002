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
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.spectrogram import HIDDEN_STATE, FrontEndMetadata
from pipeline.errors import SonolexError
from pipeline.paths import input_path
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound=BaseModel)

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SAMPLE_RATE = 16000  # Hz, of an encoder without a preprocessor
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
        encoder = open_encoder(self.source)
        return encoder.sample_rate / encoder.hop_length


class EncoderFiles(NamedTuple):
    """What the files of an encoder say of it."""

    weights: Path
    digest: str  # of the weights
    width: int  # dimensions of a hidden state
    depth: int  # transformer blocks
    kernels: tuple[int, ...]  # samples or frames, of each convolution
    strides: tuple[int, ...]
    sample_rate: int  # Hz
    normalises: bool  # each clip to mean 0 and variance 1

    @property
    def hop_length(self) -> int:
        return math.prod(self.strides)

    @property
    def win_length(self) -> int:
        """Samples that one frame of the convolutions is computed from."""
        length = 1
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1], strict=True):
            length = (length - 1) * stride + kernel
        return length


class WaveformEncoder(FrontEnd):
    """Front end that computes hidden states; the encoder is loaded with the first waveform."""

    Params = WaveformEncoderParams
    invertible: ClassVar[bool] = False
    empty_bands: list[int] = []  # noqa: RUF012 - of the instance

    def __init__(self, params: WaveformEncoderParams) -> None:
        """Read the encoder's config. Raises SonolexError where files are missing, changed or of another model."""
        self._params, self._encoder = params, open_encoder(params.source)
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
        self.min_samples = self._encoder.win_length

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record, the digest of the weights included."""
        encoder = self._encoder
        return {
            "front_end": "waveform_encoder",
            "units": HIDDEN_STATE,
            "sample_rate": encoder.sample_rate,
            "n_fft": encoder.win_length,
            "win_length": encoder.win_length,
            "hop_length": encoder.hop_length,
            "n_mels": encoder.width,
            "f_min": 0.0,
            "f_max": encoder.sample_rate / 2,
            "log_floor": 0.0,
            "frame_rate": encoder.sample_rate / encoder.hop_length,
            "params": self._params.model_dump() | {"digest": encoder.digest},
        }

    @property
    def inversion(self) -> Inversion:
        """Return where frames lie in a waveform; nothing makes a waveform of them."""
        length = self._encoder.win_length
        return Inversion(
            filters=np.empty((self._encoder.width, 0), np.float32),
            window=np.ones(length),
            log_base=math.e,
            pre_emphasis=0.0,
            before=length // 2,
        )

    def num_frames(self, num_samples: int) -> int:
        for kernel, stride in zip(self._encoder.kernels, self._encoder.strides, strict=True):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

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


class _Config(BaseModel):
    """What is read of config.json."""

    model_type: Literal["wav2vec2", "hubert", "wavlm", "data2vec-audio"]
    hidden_size: int
    num_hidden_layers: int
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]


class _Preprocessor(BaseModel):
    """What is read of preprocessor_config.json, with the values of a file that says nothing."""

    sampling_rate: int = _SAMPLE_RATE
    do_normalize: bool = True


class _Output(Protocol):
    """Output of an encoder of transformers."""

    hidden_states: Sequence["Tensor"]  # of every layer, (clip, frame, dimension)


class _Encoder(Protocol):
    """An encoder of transformers."""

    def __call__(self, samples: "Tensor", *, output_hidden_states: bool) -> _Output: ...


@lru_cache(maxsize=8)
def open_encoder(source: str) -> EncoderFiles:
    """Read what the files of an encoder say, once in a process. Raises SonolexError."""
    folder = input_path(source)
    expected = f"a waveform encoder of model_type {', '.join(MODEL_TYPES)}"
    config = _read(_Config, _find(source, folder, (_CONFIG,)), expected)
    preprocessor = _read(_Preprocessor, _find(source, folder, (_PREPROCESSOR,)), "rate and scaling of its sounds")
    weights = _find(source, folder, _WEIGHTS)
    return EncoderFiles(
        weights=weights,
        digest=file_digest(weights),
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        kernels=config.conv_kernel,
        strides=config.conv_stride,
        sample_rate=preprocessor.sampling_rate,
        normalises=preprocessor.do_normalize,
    )


@lru_cache(maxsize=2)
def _load_model(encoder: EncoderFiles, layer: int) -> _Encoder:
    """Return the encoder with the blocks up to the layer, and one more, whose input the layer is."""
    try:
        from transformers import AutoModel, logging
    except ImportError:
        raise SonolexError(
            "spectrogram.front_end: expected the package transformers, which runs waveform encoders, found none; "
            "`pip install 'transformers>=4.55'` (the extra sonolex[hub])"
        ) from None
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a checkpoint's heads are not read
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModel.from_pretrained(encoder.weights.parent, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SonolexError(
            f"{_WHERE}: {encoder.weights}: expected weights that fit {_CONFIG} beside them, found {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; fetch the encoder again"
        ) from None
    model.encoder.layers = model.encoder.layers[: layer + 1]
    prepared: _Encoder = model.eval()
    return prepared


def _find(source: str, folder: Path, names: tuple[str, ...]) -> Path:
    """Return the first of these files in the folder, or in the copy of the repository that the hub's cache holds."""
    if folder.is_dir():
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise SonolexError(
            f"{_WHERE}: {folder}: expected {' or '.join(names)}, found none; complete the folder, as "
            "save_pretrained writes it"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    last: Exception | None = None
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(source, name))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
            last = error
    raise SonolexError(
        f"{_WHERE}: expected {source!r} to be a folder here, or a repository of the Hugging Face hub or its local cache "
        f"with {' or '.join(names)}, found neither ({' '.join(str(last).split())[:200]}); without a network fetch it "
        "elsewhere, and set spectrogram.front_end.source to its folder"
    )


def _read(form: type[T], path: Path, expected: str) -> T:
    """Read a JSON file as `form`, which is `expected`."""
    try:
        return form.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'a file'}: {first['input']!r}"[:200]
        raise SonolexError(
            f"{_WHERE}: {path}: expected {expected}, found {found}; name a folder or repository of one"
        ) from None
