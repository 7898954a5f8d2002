"""Colour and line style of every model on a page, which follow from its name, so that it keeps them in other experiments.

The models of the recipes have fixed styles. Any other name has a colour by its digest; where a page has that already, the
next one that is free, in alphabetical order of the names. So two models of a page never look alike, and a model of your own
changes its style only where another takes it first.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

NUM_COLOURS, NUM_SHAPES = 8, 4  # colours of `look.css.j2`; lines and markers of `pipeline/reporting/drawing.py`


class ModelStyle(NamedTuple):
    """A colour, and the line and marker that tell models of one colour apart."""

    colour: int
    shape: int


SHIPPED = {
    "ast": ModelStyle(0, 0),
    "frames_transformer": ModelStyle(0, 1),
    "conformer": ModelStyle(0, 2),
    "frame_textures": ModelStyle(1, 0),
    "mlp": ModelStyle(1, 1),
    "bert-kmeans": ModelStyle(1, 2),
    "frame_statistics": ModelStyle(2, 0),
    "lstm-kmeans": ModelStyle(2, 1),
    "lstm-residual": ModelStyle(2, 2),
    "lstm-bands": ModelStyle(2, 3),
    "token_transformer-kmeans": ModelStyle(3, 0),
    "token_transformer-residual": ModelStyle(3, 1),
    "token_transformer-bands": ModelStyle(3, 2),
    "bag_of_tokens-kmeans": ModelStyle(4, 0),
    "bag_of_tokens-residual": ModelStyle(4, 1),
    "bag_of_tokens-bands": ModelStyle(4, 2),
    "ensemble": ModelStyle(5, 0),
    "majority": ModelStyle(5, 1),
    "ngram-kmeans": ModelStyle(5, 2),
    "bag_of_embeddings-kmeans": ModelStyle(5, 3),
    "token_textures-kmeans": ModelStyle(6, 0),
    "token_textures-residual": ModelStyle(6, 1),
    "token_textures-bands": ModelStyle(6, 2),
    "cnn": ModelStyle(7, 0),
    "psla": ModelStyle(7, 1),
    "frames_lstm": ModelStyle(7, 2),
    "token_cnn-kmeans": ModelStyle(7, 3),
}


def model_styles(models: Iterable[str]) -> dict[str, ModelStyle]:
    """Return the style of every model of a page; unused colours come first, and styles repeat only beyond 32 models."""
    names = list(models)
    styles = {name: SHIPPED[name] for name in names if name in SHIPPED}
    for name in sorted(set(names) - set(styles)):
        first = hashlib.sha256(name.encode()).digest()[0]
        slots = [ModelStyle((first + step) % NUM_COLOURS, s) for s in range(NUM_SHAPES) for step in range(NUM_COLOURS)]
        used = set(styles.values())
        colours = {style.colour for style in used}
        free = [slot for slot in slots if slot not in used]
        styles[name] = min(free or slots, key=lambda slot: slot.colour in colours)
    return {name: styles[name] for name in names}
