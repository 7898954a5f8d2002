"""Guard for tensorstore after a fork: whether its threads were lost with the parent process.

tensorstore's threads do not survive a fork: it aborts a child whose parent had used them at the first read or write. There
zarr-python is used, which is slower but starts its thread again in a child.
"""

import os

_threads = {"started": False, "lost": False}


def threads_start() -> None:
    """Record that tensorstore is about to start its threads in this process."""
    _threads["started"] = True


def threads_lost() -> bool:
    """Return whether this process was forked from one in which they ran."""
    return _threads["lost"]


def _after_fork() -> None:
    _threads["lost"] = _threads["started"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
