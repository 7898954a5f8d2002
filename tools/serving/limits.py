"""Limits of the server, and the refusals that say which of them a request has met."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RETRY_SECONDS = 1  # after which a refused client may ask again; most requests take less


@dataclass(frozen=True)
class Limits:
    """Bounds of what requests may take."""

    max_bytes: int  # of an upload, the form around it included
    max_seconds: float  # of its sound
    upload_seconds: float = 60.0  # for all of an upload to arrive
    decode_seconds: float = 10.0  # for all of an upload to be decoded
    requests: int = 64  # at once, those that wait included
    requests_of_client: int = 32  # at once, of one address
    workers: int = 2  # processes that decode, and threads that predict
    windows: int = 200  # of a timeline


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of the program
    """An answer other than 200: `reason` is one word for counting, `message` is for people."""

    def __init__(self, status: int, reason: str, message: str, *, retry: bool = False) -> None:
        self.status, self.reason, self.message = status, reason, message
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if retry else {}
        super().__init__(status, reason, message)


class Gate:
    """Counts the requests at work. For one event loop: nothing here is shared between threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.open = 0
        self._of_client = Counter[str]()

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Let a request of a client's address in. Raises Refusal (503 or 429) when too many are at work."""
        if self.open >= self._limits.requests:
            message = f"server: expected at most {self._limits.requests} requests at once; ask again in a moment"
            raise Refusal(503, "busy", message, retry=True)
        if self._of_client[client] >= self._limits.requests_of_client:
            message = (
                f"client: expected at most {self._limits.requests_of_client} requests at once from one address; wait "
                "for an answer before the next request"
            )
            raise Refusal(429, "too_many_requests", message, retry=True)
        self.open += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._of_client[client] -= 1
            self._of_client += Counter()  # drops clients without requests: their number is not bounded
