"""Web application: routes, and the order in which a request is admitted, received, decoded and computed."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.errors import SonolexError
from pipeline.inference.embedding import DEFAULT_LAYER
from pipeline.inference.windows import Windowing, window_bounds
from pipeline.spectrogram.sources import BadClip
from tools.serving.answers import (
    EmbeddingAnswer,
    ErrorAnswer,
    HealthAnswer,
    ModelAnswer,
    PredictionAnswer,
    TimelineAnswer,
    model_answer,
    prediction_answer,
    spectrogram_answer,
    tokens_answer,
    windows_answer,
)
from tools.serving.decoder import Job
from tools.serving.decoding import DecodingPool
from tools.serving.limits import Gate, Limits, Refusal
from tools.serving.metrics import CONTENT_TYPE, Metrics
from tools.serving.models import ServedModel
from tools.serving.observer import Observer
from tools.serving.pages import PAGES
from tools.serving.uploads import FIELD, Upload, receive_upload

T = TypeVar("T")

_BODY = {  # a body is read by `receive_upload`, which OpenAPI cannot see
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_REFUSALS = {
    400: "no file in the body",
    404: "no model, codebook or token of this name",
    408: "the upload took too long to arrive",
    413: "the upload is too large, or its sound too long",
    415: "the upload is no WAV, FLAC, OGG or MP3",
    422: "a parameter is wrong, or the sound cannot be used",
    429: "too many requests at once from one address; see Retry-After",
    503: "too many requests at once; see Retry-After",
    504: "decoding took too long",
}
_RESPONSES: dict[int | str, dict[str, object]] = {
    status: {"description": description, "model": ErrorAnswer} for status, description in _REFUSALS.items()
}

Top = Annotated[int, Query(ge=1, description="number of classes, those with the highest scores")]
All = Annotated[bool, Query(alias="all", description="all classes, whatever `top` says")]
Window = Annotated[float, Query(gt=0, le=60, description="seconds of a window")]
Hop = Annotated[
    float | None,
    Query(
        gt=0, le=60, description="seconds from one window to the next; by default a quarter of it, more in long sounds"
    ),
]
Layer = Annotated[str, Query(max_length=100, description="a layer of the model's first network, or `textures`")]
Drawn = Annotated[bool, Query(description="return a picture of the spectrogram")]


class Service:
    """Models behind the routes. It has workers while the application runs, see `run`."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, command: Sequence[str] | None = None) -> None:
        """Take models by name; `command` replaces the program that decodes."""
        self.models, self.limits, self.metrics = models, limits, Metrics()
        self.gate = Gate(limits)
        self._command = command
        self._described = {name: model_answer(model, limits) for name, model in models.items()}

    @asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[None]:
        """Hold decoders, threads, and a folder for uploads that nobody else reads."""
        lost = self.metrics.lost_decoders
        with (
            tempfile.TemporaryDirectory(prefix="sonolex-serve-") as folder,
            ThreadPoolExecutor(self.limits.workers, thread_name_prefix="computing") as self._threads,
        ):
            self._folder = Path(folder)
            self._slots = asyncio.Semaphore(2 * self.limits.workers)  # waveforms in memory at once
            self._decoders = DecodingPool(self.limits, lambda cause: lost.labels(cause).inc(), self._command)
            try:
                yield
            finally:
                self._decoders.close()

    async def health(self) -> HealthAnswer:
        """Return whether the server answers."""
        return HealthAnswer(status="ok", models=list(self.models), requests=self.gate.open)

    async def expose_metrics(self) -> Response:
        """Return the metrics for Prometheus."""
        self.metrics.at_work.set(self.gate.open)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def list_models(self) -> list[ModelAnswer]:
        """Return the models, with their classes and limits."""
        return list(self._described.values())

    async def predict(self, request: Request, name: str, top: Top = 5, every: All = False) -> PredictionAnswer:
        """Return the classes of a whole sound."""
        model = self._model(name)
        count = len(model.classifier.classes) if every else top

        def compute(waveform: np.ndarray, source: str) -> PredictionAnswer:
            return prediction_answer(model.predict(waveform, source), count)

        return await self._answer(request, model, compute)

    async def embed(self, request: Request, name: str, layer: Layer = DEFAULT_LAYER) -> EmbeddingAnswer:
        """Return the vector of a whole sound, of a layer of the model or of texture statistics."""
        model = self._model(name)

        def compute(waveform: np.ndarray, source: str) -> EmbeddingAnswer:
            vector = model.embed(waveform, layer, source).tolist()
            return EmbeddingAnswer(source=source, layer=layer, embedding=vector)

        return await self._answer(request, model, compute)

    async def timeline(
        self,
        request: Request,
        name: str,
        window: Window = 2.0,
        hop: Hop = None,
        top: Top = 5,
        every: All = False,
        spectrogram: Drawn = False,
    ) -> TimelineAnswer:
        """Return the classes of a sound along time, and its tokens."""
        model = self._model(name)
        count = len(model.classifier.classes) if every else top

        def compute(waveform: np.ndarray, source: str) -> TimelineAnswer:
            frames = model.classifier.frames(waveform, source)
            windows = model.predict_spans(waveform, self._spans(model, len(waveform), window, hop), source)
            return TimelineAnswer(
                **prediction_answer(model.predict(waveform, source), count).model_dump(),
                windows=windows_answer(windows, count),
                tokens=tokens_answer(model, frames),
                spectrogram=spectrogram_answer(model, frames) if spectrogram else "",
                frame_rate=model.classifier.metadata["frame_rate"],
            )

        return await self._answer(request, model, compute)

    async def token_sound(self, request: Request, name: str, codebook: int, token: int) -> Response:
        """Return the centroid of a token as a WAV file."""
        model = self._model(name)
        vocabulary = model.vocabulary
        books, tokens = (vocabulary.num_codebooks, vocabulary.num_tokens) if vocabulary else (0, 0)
        if not (0 <= codebook < books and 0 <= token < tokens):
            found = f"{tokens} tokens of {books} codebooks, counted from 0, found {codebook}/{token}"
            raise Refusal(404, "no_token", f"{name}: expected one of {found}")
        if not model.has_centroids:
            front_end = model.classifier.metadata["front_end"]
            raise Refusal(404, "no_sound", f"{name}: expected a front end that can be inverted, found {front_end}")
        with self.gate.admit(_address(request)):
            encoded = await self._compute(lambda: model.centroid(codebook, token))
        return Response(encoded, media_type="audio/wav", headers={"Cache-Control": "private, max-age=3600"})

    def _model(self, name: str) -> ServedModel:
        if name not in self.models:
            message = f"{name}: expected one of the models {', '.join(self.models)}; /models describes them"
            raise Refusal(404, "no_model", message)
        return self.models[name]

    def _spans(self, model: ServedModel, num_samples: int, window: float, hop: float | None) -> list[tuple[int, int]]:
        """Return the windows of a sound, in samples. Raises Refusal (422) for a window or a hop that it cannot have."""
        rate, shortest = model.classifier.sample_rate, model.classifier.front_end.min_samples
        length = round(window * rate)
        if length < shortest:
            message = f"window: expected at least {shortest / rate:g} s, a frame of {model.name}, found {window:g} s"
            raise Refusal(422, "short_window", message)
        least = -(-max(0, num_samples - length) // (self.limits.windows - 1))  # samples
        step = max(length // 4, least, 1) if hop is None else round(hop * rate)
        if step < max(least, 1):
            message = (
                f"hop: expected at most {self.limits.windows} windows, found a hop of {hop} s in a sound of "
                f"{num_samples / rate:.1f} s; take at least {max(least, 1) / rate + 5e-4:.3f} s"
            )
            raise Refusal(422, "too_many_windows", message)
        return window_bounds(num_samples, rate, Windowing(length / rate, step / rate))

    async def _answer(self, request: Request, model: ServedModel, compute: Callable[[np.ndarray, str], T]) -> T:
        """Admit a request, receive its sound, decode it, and return what `compute` makes of waveform and name."""
        started = time.perf_counter()
        with self.gate.admit(_address(request)):
            async with receive_upload(request, self._folder, self.limits) as upload:
                self.metrics.steps.labels("upload").observe(time.perf_counter() - started)
                async with self._slots:
                    waveform = await self._decode(upload, model)
                    with self.metrics.step("compute"):
                        return await self._compute(lambda: compute(waveform, upload.name))

    async def _decode(self, upload: Upload, model: ServedModel) -> np.ndarray:
        classifier = model.classifier
        job = Job(
            path=str(upload.path),
            name=upload.name,
            reading=classifier.reading,
            max_seconds=self.limits.max_seconds,
        )
        with self.metrics.step("decode"):
            waveform = await self._decoders.decode(job)
        self.metrics.sound.labels(model.name).inc(len(waveform) / classifier.sample_rate)
        return waveform

    async def _compute(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on one of the threads. Raises Refusal (422) for a sound that a model cannot use."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BadClip as error:
            raise Refusal(422, error.reason, error.message) from None
        except SonolexError as error:
            raise Refusal(422, "unusable", str(error)) from None


def make_app(service: Service) -> FastAPI:
    """Return the application: page, API, health, metrics and OpenAPI, without anything from another host."""
    app = FastAPI(
        title="Sonolex",
        description="Predictions, timelines, embeddings and token sounds of trained models.",
        lifespan=service.run,
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
    )
    add = app.add_api_route
    add("/health", service.health)
    add("/health", service.health, methods=["HEAD"], include_in_schema=False)  # for monitors
    add("/metrics", service.expose_metrics, response_class=Response)
    add("/models", service.list_models)
    add("/models/{name}/predict", service.predict, methods=["POST"], openapi_extra=_BODY, responses=_RESPONSES)
    add("/models/{name}/embed", service.embed, methods=["POST"], openapi_extra=_BODY, responses=_RESPONSES)
    add("/models/{name}/timeline", service.timeline, methods=["POST"], openapi_extra=_BODY, responses=_RESPONSES)
    add("/models/{name}/tokens/{codebook}/{token}.wav", service.token_sound, response_class=Response)
    for path, page in PAGES.items():
        add(path, page, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_exception_handler(Refusal, _on_refusal(service.metrics))
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_middleware(Observer, metrics=service.metrics)
    return app


def _address(request: Request) -> str:
    return str(request.client.host) if request.client else ""


def _on_refusal(metrics: Metrics) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        metrics.refusals.labels(refusal.reason).inc()
        return _error(refusal.status, refusal.reason, refusal.message, refusal.headers)

    return answer


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        f"{'.'.join(map(str, part['loc'][1:]))}: {part['msg']}, found {part['input']!r}" for part in error.errors()
    ]
    return _error(422, "invalid", "; ".join(found))


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "http", f"{request.method} {request.url.path}: {error.detail}", error.headers)


def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the metrics: there is nobody to read it


def _error(status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"reason": reason, "message": message}, status, headers)
