"""Whether this process may use tensorstore: one forked from a process that had used it may not.

tensorstore's threads do not survive a fork: a child whose parent had used them is ended by tensorstore at its first read
or write. zarr-python starts its own thread anew in a child; it is slower, and serves there.
"""

import os

_threads = {"started": False, "lost": False}


def threads_start() -> None:
    """Note that tensorstore is about to start its threads in this process."""
    _threads["started"] = True


def threads_lost() -> bool:
    """Say whether this process was forked from one in which they ran."""
    return _threads["lost"]


def _after_fork() -> None:
    _threads["lost"] = _threads["started"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
