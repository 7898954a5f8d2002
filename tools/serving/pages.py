"""The page and its files: a fixed list, read when the server starts, so that no request names a file."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import Request, Response

_PAGE = files("tools.serving") / "page"
_LOOK = files("pipeline.reporting") / "templates" / "look.css.j2"  # of the report: plain CSS

_FILES = {
    "/": (_PAGE / "index.html", "text/html; charset=utf-8"),
    "/look.css": (_LOOK, "text/css; charset=utf-8"),
    "/page.css": (_PAGE / "page.css", "text/css; charset=utf-8"),
    "/page.js": (_PAGE / "page.js", "text/javascript; charset=utf-8"),
    "/recorder.js": (_PAGE / "recorder.js", "text/javascript; charset=utf-8"),
}


def _respond(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return respond


PAGES = {path: _respond(file.read_bytes(), kind) for path, (file, kind) in _FILES.items()}
