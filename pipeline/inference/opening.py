"""Opening of trained models by their path: bundles, and published checkpoints. Imports no torch for bundles."""

from pathlib import Path

from pipeline.errors import SonolexError
from pipeline.inference.bundle import is_bundle, open_bundle
from pipeline.inference.classifier import Classifier

CONFIG = "config.json"  # of a Hugging Face folder
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")  # of files of weights


def open_classifier(path: Path, classes: Path | None = None) -> Classifier:
    """Open a bundle or a published checkpoint; `classes` lists the classes of a checkpoint whose files do not name them.

    Raises SonolexError that says where, what was expected and found, and what to do.
    """
    if not is_bundle(path) and is_checkpoint(path):
        from pipeline.inference.checkpoints import open_checkpoint  # imports torch

        return open_checkpoint(path, classes)
    bundle = open_bundle(path)
    if classes is not None:
        raise SonolexError(
            f"{classes}: expected a list of classes with a published checkpoint alone, found one with the bundle {path}, "
            "which has its own; leave it out"
        )
    return bundle.classifier


def is_checkpoint(path: Path) -> bool:
    """Return whether a path looks like a published checkpoint: a folder with a config.json, or a file of weights."""
    return (path / CONFIG).is_file() or (path.is_file() and path.suffix in SUFFIXES)
