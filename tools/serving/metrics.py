"""Metrics of the server, for Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper bounds of buckets


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sonolex_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "sonolex_request_seconds", "Duration of requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.steps = Histogram(
            "sonolex_step_seconds",
            "Duration of each step of a request: upload, decode (waiting included), compute.",
            ["step"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.at_work = Gauge(
            "sonolex_requests_at_work", "Requests that are admitted and not answered.", registry=registry
        )
        self.sound = Counter("sonolex_sound_seconds", "Sound that was decoded.", ["model"], registry=registry)
        self.refusals = Counter("sonolex_refusals", "Refused requests by reason.", ["reason"], registry=registry)
        self.lost_decoders = Counter(
            "sonolex_lost_decoders", "Decoders that were replaced.", ["cause"], registry=registry
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step of a request."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps.labels(name).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return bytes(generate_latest(self._registry))
