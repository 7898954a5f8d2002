"""Use trained models: predict what is in a sound, embed it, or rewrite it as tokens.

    import sonolex

    model = sonolex.load("my-model")  # a folder that `sonolex bundle` wrote
    model.predict("dog.wav").top(3)  # [ClassScore(name='dog', score=0.98), ...]

Importing it is cheap: torch is loaded with the first model that needs it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SonolexError

if TYPE_CHECKING:
    from sonolex.model import Model, texture_statistics

__all__ = ["SonolexError", "load", "texture_statistics"]


def load(path: str | Path | Sequence[str | Path], classes: str | Path | None = None) -> "Model":
    """Open a bundle, or a published checkpoint of AST or PSLA (docs/bundles.md); of several, the mean predicts.

    `classes` is a text file with a name a line, for a checkpoint whose files do not name its classes. Raises SonolexError
    for what is neither, is incomplete or was altered.
    """
    from sonolex.model import Model

    paths = [path] if isinstance(path, str | Path) else path
    return Model.open(*map(Path, paths), classes=None if classes is None else Path(classes))


def __getattr__(name: str) -> object:
    """Return what is imported when it is first used, since it loads SciPy."""
    if name == "texture_statistics":
        from sonolex.model import texture_statistics

        return texture_statistics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
