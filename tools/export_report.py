"""Result of an export: the largest difference of logits, and remarks for people; and silence of the exporters."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.errors import SonolexError


class Export(NamedTuple):
    difference: float  # largest difference of a logit between model and file
    remarks: list[str]


def require_same(difference: float, tolerance: float, where: str) -> float:
    """Return the difference of logits. Raises SonolexError where it exceeds the tolerance."""
    if not difference <= tolerance:
        raise SonolexError(
            f"{where}: expected the logits of the model within {tolerance}, found them {difference:.2g} away; do not use it"
        )
    return difference


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' notes, which are for their developers, from the terminal."""
    log, level = logging.getLogger(), logging.getLogger().level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
