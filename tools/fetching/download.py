"""Resumable download of one file over HTTP; what has arrived stays beside it, in a file with the suffix `.part`.

pooch and fsspec, which are installed, download to the end or not at all: pooch removes what has arrived when a connection
breaks, and `get_file` of fsspec begins at the first byte. requests, which DVC needs too, brings redirects, proxies and
certificates.
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from pipeline.errors import SonolexError
from tools.byte_progress import ByteCounter
from tools.fetching.storage import naming

_PIECE = 1 << 20  # bytes written at a time
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may do better a moment later
_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Patience:
    """When to give up."""

    attempts: int = 6  # in a row that bring no further byte
    pause: float = 1.0  # seconds after an attempt that brought some; doubles with each that brings none
    timeout: float = 60.0  # seconds without an answer, or without a byte


class _InterruptedError(Exception):
    """A transfer that ended early and may be tried again, after `wait` seconds if the server says so."""

    def __init__(self, reason: object, wait: float = 0.0) -> None:
        super().__init__(str(reason))
        self.wait = wait


def download(url: str, target: Path, size: int | None, counter: ByteCounter, patience: Patience) -> None:
    """Download a file of `size` bytes, if that is known, to `target`; continue where an earlier attempt ended.

    Raises SonolexError when the server refuses, when it has a file of another size, and when `patience` has run out.
    """
    part = partial_path(target)
    furthest, failures = _size_of(part), 0
    while True:
        try:
            _transfer(url, part, size, counter, patience.timeout)
            break
        except _InterruptedError as error:
            reached = _size_of(part)
            failures = 0 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= patience.attempts:
                raise SonolexError(
                    f"{url}: expected the whole file, found {error} ({failures} attempts in a row); {reached:,} bytes are "
                    f"in {part}: check the network, then run the same command again, which goes on from there"
                ) from None
            time.sleep(min(max(patience.pause * 2**failures, error.wait), _LONGEST_PAUSE))
    os.replace(part, target)


def partial_path(target: Path) -> Path:
    """Return the file that holds what has arrived of a target so far."""
    return target.with_name(target.name + ".part")


def _transfer(url: str, part: Path, size: int | None, counter: ByteCounter, timeout: float) -> None:
    """Ask for what is missing once, and append it. Raises _InterruptedError if something is missing still."""
    there = _size_of(part)
    if there and there == size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "sonolex"} | ({"Range": f"bytes={there}-"} if there else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            if not _is_complete(url, answer, part, there, size):
                total = _check(url, answer, part, there, size)
                _receive(url, answer, part, total, counter)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _InterruptedError(_innermost(error)) from None
    except requests.RequestException as error:
        raise SonolexError(f"{url}: expected a file, found {error}; correct the address in the catalogue") from None


def _is_complete(url: str, answer: requests.Response, part: Path, there: int, size: int | None) -> bool:
    """Return whether the server says that nothing is missing. Where the rest cannot be had, the start is discarded."""
    if answer.status_code != requests.codes.requested_range_not_satisfiable:
        return False
    if answer.headers.get("Content-Range", "") == f"bytes */{there}":
        _require_size(url, there, size)
        return True
    part.unlink(missing_ok=True)
    raise _InterruptedError(f"a server that cannot go on after {there:,} bytes")


def _check(url: str, answer: requests.Response, part: Path, there: int, size: int | None) -> int | None:
    """Return the size of the whole file, if it is known. Raises an error unless the answer has the bytes asked for."""
    if answer.status_code in _BUSY:
        wait = answer.headers.get("Retry-After", "")
        raise _InterruptedError(
            f"the answer {answer.status_code} {answer.reason}", float(wait) if wait.isdecimal() else 0.0
        )
    if answer.status_code not in (requests.codes.ok, requests.codes.partial):
        raise SonolexError(
            f"{url}: expected a file, found the answer {answer.status_code} {answer.reason}; look whether the page of the "
            "corpus names another address, and write it into the catalogue"
        )
    total = _total(answer)
    if answer.status_code == requests.codes.partial and _first_byte(answer) != there:
        part.unlink(missing_ok=True)
        raise _InterruptedError(f"a server that does not go on after {there:,} bytes")
    _require_size(url, total, size)
    return total if size is None else size


def _require_size(url: str, total: int | None, size: int | None) -> None:
    """Raise SonolexError if the server's file has another size than the catalogue says, as far as both are known."""
    if size is not None and total is not None and total != size:
        raise SonolexError(
            f"{url}: expected {size:,} bytes, found {total:,} on the server; the publisher has changed the file: compare "
            "with the page of the corpus, then correct size and checksum in the catalogue"
        )


def _receive(url: str, answer: requests.Response, part: Path, total: int | None, counter: ByteCounter) -> None:
    """Write an answer's bytes as they come, without decoding. Raises _InterruptedError if there are too few."""
    resumed = answer.status_code == requests.codes.partial
    done = _size_of(part) if resumed else 0
    counter.start(done, total)
    with naming(part), part.open("ab" if resumed else "wb") as file:
        for piece in answer.raw.stream(_PIECE, decode_content=False):
            done += len(piece)
            if total is not None and done > total:
                raise SonolexError(
                    f"{url}: expected {total:,} bytes, found more; the server is at fault, try again later"
                )
            file.write(piece)
            counter.advance(len(piece))
    if total is not None and done < total:
        raise _InterruptedError("a connection that ended early")


def _total(answer: requests.Response) -> int | None:
    """Return the size of the whole file as the headers of an answer have it."""
    if answer.status_code == requests.codes.partial:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _first_byte(answer: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _innermost(error: BaseException) -> BaseException:
    """Return the error that others were raised from: the network's, not that of the layers above it."""
    while error.__context__ is not None:
        error = error.__context__
    return error
