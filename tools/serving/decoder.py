"""Worker process that decodes uploads, so that a file which crashes or stalls a decoder takes no more than this process.

    python -m tools.serving.decoder BYTES

BYTES bounds the memory of the process. Each line of stdin is a job in JSON; the answer on stdout is a line of JSON, then the
waveform's float32 samples, if it has any. Nothing is pickled: the server does not trust this process.
"""

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np

from pipeline.inference.sounds import Reading, read_file
from pipeline.spectrogram.sources import BadClip


class Job(TypedDict):
    """An upload to decode."""

    path: str  # of the server's own choice
    name: str  # for messages, in the place of the path
    reading: Reading
    max_seconds: float


class Answer(TypedDict):
    """What became of a job: samples, or why there are none."""

    samples: int
    reason: str
    message: str


def read_job(job: Job) -> np.ndarray:
    """Return the waveform (sample,) float32 of a job. Raises BadClip."""
    return read_file(Path(job["path"]), **job["reading"], max_seconds=job["max_seconds"])


def answer_jobs(jobs: BinaryIO, answers: BinaryIO, read: Callable[[Job], np.ndarray] = read_job) -> None:
    """Answer every job until the server closes the pipe."""
    for line in jobs:
        job: Job = json.loads(line)
        waveform, answer = np.empty(0, np.float32), Answer(samples=0, reason="", message="")
        try:
            waveform = read(job)
            answer["samples"] = len(waveform)
        except BadClip as error:
            answer |= {"reason": error.reason, "message": error.message.replace(job["path"], job["name"])}
        except MemoryError:
            answer |= {
                "reason": "too_large",
                "message": f"{job['name']}: expected sound that fits the memory of a decoder",
            }
        answers.write(json.dumps(answer).encode() + b"\n" + waveform.tobytes())
        answers.flush()


def confine(memory: int) -> None:
    """Bound this process: memory in bytes, no files written, no core dumps; Ctrl-C is left to the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is set already, or the system has none
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    answer_jobs(sys.stdin.buffer, sys.stdout.buffer)
