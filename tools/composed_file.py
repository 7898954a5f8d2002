"""First line of a composed params.yaml: the command, and a digest of the rest, by which changes by hand are noticed."""

import hashlib
import re
import shlex
from collections.abc import Sequence

_HEADER = re.compile(r"# `sonolex compose .*` wrote this file; changed by hand where its digest is not (\w+)\.\n")


def sign(text: str, recipe: str, overrides: Sequence[str]) -> str:
    """Return the text of a params file with its first line."""
    arguments = " ".join(shlex.join([recipe, *overrides]).split())
    header = (
        f"# `sonolex compose {arguments}` wrote this file; changed by hand where its digest is not {_digest(text)}."
    )
    return f"{header}\n{text}"


def changed_by_hand(text: str, base: str) -> bool:
    """Return whether a params file is neither as it was composed, nor the text of the base, as it is committed."""
    header = _HEADER.match(text)
    return text != base if header is None else _digest(text[header.end() :]) != header[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
