"""Peak memory of a process."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def own_peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes.

    On Linux from VmHWM: a program inherits `ru_maxrss` from the process that started it, so a worker of a large process
    would report that process's memory.
    """
    try:
        marks = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0][1]) * 1024
    except (OSError, IndexError, ValueError):  # no Linux
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
