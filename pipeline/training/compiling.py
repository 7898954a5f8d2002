"""torch.compile with a fallback to the plain function, so that a failure to compile never stops a run."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, compiled at its first call; after a failure to compile, the plain one, with a warning."""
    fast: Callable[P, R] | None = torch.compile(function)

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*arguments, **options)
            except TorchDynamoException as error:
                reason = " ".join(str(error).split())[:300]
                log.warning(
                    "train.compile: expected torch.compile to work, found %s: %s; training goes on without it, more slowly "
                    "(it needs a C++ compiler, and on GPUs Triton)", type(error).__name__, reason,
                )  # fmt: skip
                fast = None
        return function(*arguments, **options)

    return call
