"""No flipped bit in what outlives a run is silent: the result is right, or a named error."""

from pathlib import Path

import pytest
from flips import KINDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_silent(kind: str, tmp_path: Path) -> None:
    found = KINDS[kind](tmp_path, 30)
    assert found == {"right": 30}  # each of them is a cache: what is damaged is made again
