"""Numbers of threads that arithmetic runs on, which results follow from: sums are cut where threads meet.

So the number is a setting or a constant, and never what a machine happens to have.
"""

import sys
from collections.abc import Mapping
from typing import Any

from threadpoolctl import threadpool_limits

from pipeline.artifacts.settings import SETTINGS

TRAINING_THREADS = "train.num_threads"


def use_threads(count: int) -> None:
    """Let BLAS, OpenMP and torch use so many threads in this process from now on, however many cores there are."""
    threadpool_limits(count)
    if "torch" in sys.modules or count > 1:
        import torch

        torch.set_num_threads(count)


def trained_threads(facts: Mapping[str, Any]) -> int:
    """Return how many threads a stored model was trained on, by its facts; 1 where it does not say."""
    return int(facts.get(SETTINGS, {}).get(TRAINING_THREADS, 1))
