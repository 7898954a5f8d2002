"""Decoding of uploads in worker processes that are replaced when they die or take too long."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tools.serving.decoder import Answer, Job
from tools.serving.limits import Limits, Refusal

ROOT = Path(__file__).parents[2]  # of the packages, which a worker imports from wherever the server was started

_HIGHEST_RATE = 384_000  # Hz, that `pipeline/spectrogram/readers.py` reads
_BASE_MEMORY = 2 << 30  # bytes of address space: libraries, stacks, blocks of many channels

# Reasons of BadClip that are no fault of the server's limits: the upload is no audio that is read, or no usable one.
_STATUS = {"too_long": 413, "too_large": 413, "unreadable": 415, "empty": 415}
_UNUSABLE = 422


def decoder_command(limits: Limits) -> list[str]:
    """Return the command of a worker, whose memory holds the longest sound at the highest rate, and its resampling."""
    memory = _BASE_MEMORY + round(4 * 4 * limits.max_seconds * _HIGHEST_RATE)
    return [sys.executable, "-P", "-m", "tools.serving.decoder", str(memory)]


class _Lost(Exception):  # noqa: N818 - an event, which the pool answers
    """A worker ended in the middle of a job: `cause` is died, or timeout where it was ended."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


class Decoder:
    """One worker process."""

    def __init__(self, command: Sequence[str]) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def decode(self, job: Job, seconds: float) -> np.ndarray:
        """Return the waveform (sample,) float32 of a job. Raises Refusal for a bad upload, _Lost with the process."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            waveform = self._exchange(job)
        except (OSError, ValueError, EOFError):
            raise _Lost("timeout" if late.is_set() else "died") from None
        finally:
            timer.cancel()
            timer.join()  # else it might end the process after this job
        if late.is_set():
            raise _Lost("timeout")
        return waveform

    def _exchange(self, job: Job) -> np.ndarray:
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None
        assert answers is not None
        jobs.write(json.dumps(job).encode() + b"\n")
        jobs.flush()
        answer: Answer = json.loads(answers.readline())
        if answer["reason"]:
            raise Refusal(_STATUS.get(answer["reason"], _UNUSABLE), answer["reason"], answer["message"])
        size = 4 * min(answer["samples"], round((job["max_seconds"] + 1) * job["reading"]["sample_rate"]))
        encoded = answers.read(size)
        if len(encoded) < size:
            raise EOFError
        return np.frombuffer(encoded, dtype=np.float32)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except OSError:  # a job that was not flushed
                    continue


class DecodingPool:
    """Worker processes, one job at a time each. For one event loop."""

    def __init__(self, limits: Limits, on_lost: Callable[[str], object], command: Sequence[str] | None = None) -> None:
        """Start the workers; `on_lost` is told why one was replaced, "died" or "timeout"."""
        self._limits, self._on_lost = limits, on_lost
        self._command = list(command or decoder_command(limits))
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="decoding")
        self._idle = asyncio.Queue[Decoder]()
        for _ in range(limits.workers):
            self._idle.put_nowait(Decoder(self._command))

    async def decode(self, job: Job) -> np.ndarray:
        """Return the waveform (sample,) float32 of a job.

        Raises Refusal: 413 (too long), 415 (no audio), 422 (unusable, or its decoder died), 504 (its decoder hung).
        """
        decoder = await self._idle.get()
        loop, seconds = asyncio.get_running_loop(), self._limits.decode_seconds
        try:
            return await loop.run_in_executor(self._threads, decoder.decode, job, seconds)
        except _Lost as lost:
            self._on_lost(lost.cause)
            decoder.close()
            decoder = Decoder(self._command)
            raise _refusal_of(lost.cause, job["name"], seconds) from None
        finally:
            self._idle.put_nowait(decoder)

    def close(self) -> None:
        """End all workers; none may have a job."""
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._threads.shutdown()


def _refusal_of(cause: str, name: str, seconds: float) -> Refusal:
    advice = "convert it to WAV or FLAC"
    if cause == "timeout":
        message = f"{name}: expected a file that is decoded in {seconds:g} s, found one that takes longer; {advice}"
        return Refusal(504, "decoding_timeout", message)
    return Refusal(
        422, "decoder_died", f"{name}: expected audio, found a file that the decoder cannot survive; {advice}"
    )
