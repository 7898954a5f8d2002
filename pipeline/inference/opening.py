"""Opening of trained models by their path: bundles, and published checkpoints. Imports no torch for bundles."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SonolexError
from pipeline.inference.bundle import is_bundle, open_bundle
from pipeline.inference.classifier import Classifier

CONFIG = "config.json"  # of a Hugging Face folder
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")  # of files of weights


def open_ensemble(paths: Sequence[Path], classes: Path | None = None) -> Classifier:
    """Open one path as `open_classifier` does, or several published checkpoints, whose mean predicts."""
    if len(paths) == 1:
        return open_classifier(paths[0], classes)
    others = [str(path) for path in paths if is_bundle(path) or not is_checkpoint(path)]
    if others or not paths:
        found = ", ".join(others) or "no path"
        raise SonolexError(
            f"expected the path of a bundle, or those of several published checkpoints, found {found}; an ensemble of "
            "models trained here becomes one bundle by `sonolex bundle ENSEMBLE`"
        )
    from pipeline.inference.checkpoints import open_checkpoints  # imports torch

    return open_checkpoints(paths, classes)


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
