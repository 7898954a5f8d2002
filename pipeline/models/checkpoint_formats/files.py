"""Reading of weights files without running code: local ones, or those of the Hugging Face hub by name.

safetensors hold only numbers; `.pth` and `.bin` are read with torch's `weights_only`, which refuses pickles that would call
a function.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import SonolexError


def require_file(path: Path) -> None:
    """Raise SonolexError unless there is a file of weights."""
    if not path.is_file():
        raise SonolexError(
            f"pretrained: {path}: expected a file of weights, found {'a folder' if path.is_dir() else 'none'}; set "
            "pretrained.source to where it is"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name. Raises SonolexError."""
    require_file(path)
    try:
        loaded: object = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except SafetensorError as error:
        raise SonolexError(f"pretrained: {path}: expected safetensors, found {error}; fetch the file again") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]  # as in DeiT's files
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        found = type(loaded).__name__ if not isinstance(loaded, dict) else f"a mapping of {', '.join(map(str, loaded))}"
        raise SonolexError(
            f"pretrained: {path}: expected tensors by name, found {found[:200]}; take the file of the weights"
        )
    return loaded


def hub_file(repository: str, names: Sequence[str], *, source: str) -> Path:
    """Return the local copy of the first of these files that a repository of the hub has, downloaded if need be.

    `source` is the user's setting, for the message of the SonolexError where there is neither a network nor a copy.
    """
    import huggingface_hub  # here: only weights from the hub need it
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    last: Exception | None = None
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # no network; a subclass of the next exception
            last = error
            break
        except EntryNotFoundError as error:
            last = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            last = error
            break
    found = " ".join(str(last).split())[:300]
    raise SonolexError(
        f"pretrained.source: expected {source!r} to be a file or folder here, or {' or '.join(names)} of {repository} on "
        f"the Hugging Face hub or in its local cache, found neither ({found}); without a network fetch the files elsewhere, "
        "and set pretrained.source to where they lie"
    )


def require_shapes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, part: str, advice: str
) -> None:
    """Raise SonolexError unless the tensors are those of a network's part, by name and shape.

    Old files may lack num_batches_tracked. `advice` is what to do.
    """
    wrong = [f"{name} missing" for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    wrong += [f"{name} unknown" for name in found if name not in expected]
    wrong += [
        f"{name} of shape {tuple(values.shape)} for {tuple(expected[name].shape)}"
        for name, values in found.items()
        if name in expected and values.shape != expected[name].shape
    ]
    if wrong:
        raise SonolexError(
            f"pretrained: {where}: expected the {len(expected)} tensors of the {part}, found {len(wrong)} that differ "
            f"({', '.join(wrong[:3])}); {advice}"
        )


def _load_pth(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), str(error)
        )
        raise SonolexError(
            f"pretrained: {path}: expected weights alone, found a pickle that would run code or is damaged "
            f"({reason.strip()[:200]}); it was not run; take weights from whoever published them, best as safetensors"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:  # neither a zip file nor a pickle
        raise SonolexError(
            f"pretrained: {path}: expected a file of weights written by torch, found {type(error).__name__}: "
            f"{str(error)[:200]}; fetch the file again"
        ) from None
