"""`sonolex serve`: offer bundles over HTTP, with a page to try them.

    sonolex serve ast-esc10 words=token-transformer-esc10
    curl -F file=@dog.wav http://127.0.0.1:8000/models/ast-esc10/predict

docs/serving.md describes the routes, the limits and their answers.
"""

import signal
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.errors import SonolexError
from pipeline.execution.threads import num_cores, use_threads

if TYPE_CHECKING:
    from fastapi import FastAPI

_PACKAGES = {  # by the module that is imported
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
_DRAINING = 30  # seconds after SIGTERM for requests at work


def run(
    bundles: Sequence[str],
    *,
    host: str,
    port: int,
    max_bytes: int,
    max_seconds: float,
    requests: int,
    requests_of_client: int,
    console: Console,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests at work are answered first. Raises SonolexError where it cannot start."""
    _require_packages()
    from tools.serving.app import Service, make_app
    from tools.serving.limits import Limits
    from tools.serving.models import open_models

    use_threads(1)  # one request a thread: several threads for one would share the same cores
    limits = Limits(
        max_bytes=max_bytes,
        max_seconds=max_seconds,
        requests=requests,
        requests_of_client=requests_of_client,
        workers=num_cores(),
    )
    with _listen(host, port) as listener:
        models = open_models(bundles)
        app = make_app(Service(models, limits))
        listener.listen()  # from here on clients wait for the loop instead of being refused
        console.print(f"{_address(listener)}  {', '.join(models)}; Ctrl-C ends it", soft_wrap=True, highlight=False)
        _serve(app, listener)


def _serve(app: "FastAPI", listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAINING,
    )
    # uvicorn raises the signal that ended it once more when all is answered: by then there is nothing left to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises SonolexError for an address that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[0], port, *address[2:]))  # getaddrinfo takes a port beyond 65535 for another
    except (OSError, OverflowError) as error:
        advice = "choose another with --port, 0 for any that is free, or --host 127.0.0.1"
        raise SonolexError(f"{host}:{port}: expected an address to listen on, found: {error}; {advice}") from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _require_packages() -> None:
    if missing := [package for module, package in _PACKAGES.items() if find_spec(module) is None]:
        raise SonolexError(
            f"serve: expected the packages of the extra `serve`, found no {', '.join(missing)}; in the project's folder: "
            "`pip install -e '.[serve]'`"
        )
