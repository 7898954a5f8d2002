"""Use trained models: predict what is in a sound, embed it, or rewrite it as tokens.

    import sonolex

    model = sonolex.load("my-model")  # a folder that `sonolex bundle` wrote
    model.predict("dog.wav").top(3)  # [ClassScore(name='dog', score=0.98), ...]

Importing it is cheap: torch is loaded with the first model that needs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SonolexError

if TYPE_CHECKING:
    from sonolex.model import Model

__all__ = ["SonolexError", "load"]


def load(path: str | Path, classes: str | Path | None = None) -> "Model":
    """Open a bundle, or a published checkpoint of the audio spectrogram transformer (docs/bundles.md).

    `classes` is a text file with a name a line, for a checkpoint whose files do not name its classes. Raises SonolexError
    for what is neither, is incomplete or was altered.
    """
    from sonolex.model import Model

    return Model.open(Path(path), None if classes is None else Path(classes))
