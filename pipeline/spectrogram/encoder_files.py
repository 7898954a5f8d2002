"""Files of a pretrained waveform encoder of the package transformers: its sizes, its preprocessor, and its weights.

The encoders are wav2vec 2.0, HuBERT, WavLM and data2vec audio, in a folder as save_pretrained writes it, or a repository of
the Hugging Face hub.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.paths import input_path

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", bound=BaseModel)

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SAMPLE_RATE = 16000  # Hz, of an encoder without a preprocessor
_MASK_TOKEN = "masked_spec_embed"  # noqa: S105 - a weight of pretraining, which files of fine-tuned encoders may lack


class Convolutions(NamedTuple):
    """Sizes of the convolutions that map samples to the first frames."""

    kernels: tuple[int, ...]  # samples or frames
    strides: tuple[int, ...]

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    @property
    def win_length(self) -> int:
        """Samples that one frame is computed from."""
        length = 1
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1], strict=True):
            length = (length - 1) * stride + kernel
        return length

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a clip of so many samples has."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples


class EncoderFiles(NamedTuple):
    """What the files of an encoder say of it."""

    weights: Path
    digest: str  # of the weights
    config: str  # the text of config.json
    width: int  # dimensions of a hidden state
    depth: int  # transformer blocks
    convolutions: Convolutions
    sample_rate: int  # Hz
    normalises: bool  # each clip to mean 0 and variance 1

    @property
    def settings(self) -> dict[str, object]:
        """Return the content of config.json."""
        return dict(json.loads(self.config))


class EncoderOutput(Protocol):
    """Output of an encoder of transformers."""

    hidden_states: Sequence["Tensor"]  # of every layer, (clip, frame, dimension)


class Blocks(Protocol):
    """The part of an encoder that has the transformer blocks."""

    layers: Sequence[object]


class LoadedEncoder(Protocol):
    """An encoder of transformers."""

    encoder: Blocks

    def __call__(self, samples: "Tensor", *, output_hidden_states: bool) -> EncoderOutput: ...

    def eval(self) -> Self: ...

    def state_dict(self) -> dict[str, "Tensor"]: ...


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


@lru_cache(maxsize=8)
def open_encoder(source: str, where: str) -> EncoderFiles:
    """Read what the files of an encoder say, once in a process; `where` is the key of `source`. Raises SonolexError."""
    folder = input_path(source)
    expected = f"a waveform encoder of model_type {', '.join(MODEL_TYPES)}"
    path = _find(source, folder, (_CONFIG,), where)
    config = _read(_Config, path, expected, where)
    preprocessor_path = _find(source, folder, (_PREPROCESSOR,), where)
    preprocessor = _read(_Preprocessor, preprocessor_path, "rate and scaling of its sounds", where)
    weights = _find(source, folder, _WEIGHTS, where)
    return EncoderFiles(
        weights=weights,
        digest=file_digest(weights),
        config=path.read_text(encoding="utf-8"),
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        convolutions=Convolutions(config.conv_kernel, config.conv_stride),
        sample_rate=preprocessor.sampling_rate,
        normalises=preprocessor.do_normalize,
    )


def load_encoder(encoder: EncoderFiles, where: str) -> "LoadedEncoder":
    """Return the encoder with its weights. Raises SonolexError where they do not fit the config, or are incomplete."""
    require_transformers(where)
    from transformers import AutoModel, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a checkpoint's heads are not read
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, loading = AutoModel.from_pretrained(
            encoder.weights.parent, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _misfit(encoder, where, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    if missing := sorted(name for name in loading["missing_keys"] if name != _MASK_TOKEN):
        raise _misfit(encoder, where, f"none called {', '.join(missing[:3])}")
    loaded: LoadedEncoder = model
    return loaded


def require_transformers(where: str) -> None:
    """Raise SonolexError without the package transformers, for which `where` is the reason."""
    try:
        import transformers  # noqa: F401 - whether it is there
    except ImportError:
        raise SonolexError(
            f"{where}: expected the package transformers, which runs waveform encoders, found none; "
            "`pip install 'transformers>=4.55'` (the extra sonolex[hub])"
        ) from None


def _misfit(encoder: EncoderFiles, where: str, found: str) -> SonolexError:
    return SonolexError(
        f"{where}: {encoder.weights}: expected weights that fit {_CONFIG} beside them, found {found}; "
        "fetch the encoder again"
    )


def _find(source: str, folder: Path, names: Sequence[str], where: str) -> Path:
    """Return the first of these files in the folder, or in the copy of the repository that the hub's cache holds."""
    if folder.is_dir():
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise SonolexError(
            f"{where}: {folder}: expected {' or '.join(names)}, found none; complete the folder, as "
            "save_pretrained writes it"
        )
    if folder.is_file():
        raise SonolexError(
            f"{where}: {folder}: expected a folder, as save_pretrained writes it, found a file; name its folder"
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
        f"{where}: expected {source!r} to be a folder here, or a repository of the Hugging Face hub or its local cache "
        f"with {' or '.join(names)}, found neither ({' '.join(str(last).split())[:200]}); without a network fetch it "
        f"elsewhere, and set {where} to its folder"
    )


def _read(form: type[T], path: Path, expected: str, where: str) -> T:
    """Read a JSON file as `form`, which is `expected`."""
    try:
        return form.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'a file'}: {first['input']!r}"[:200]
        raise SonolexError(
            f"{where}: {path}: expected {expected}, found {found}; name a folder or repository of one"
        ) from None
