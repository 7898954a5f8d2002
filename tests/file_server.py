"""HTTP server of files on this machine, with the faults that servers and networks have."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What a server has, how it errs, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # by path, `/a.zip`
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # of every answer, beside those that it needs
    ranges: bool = True
    lengths: bool = True  # says how long an answer is; otherwise it is sent in chunks
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers end, each once
    answers: list[tuple[int, dict[str, str]]] = field(
        default_factory=list
    )  # status and headers in place of the next answers
    hold_after: int | None = None  # bytes after which an answer waits for `go`
    go: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and range
    agents: set[str] = field(default_factory=set)  # programs that asked


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Serve files in threads of this process until the end of the block."""
    state = FileServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        state.go.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FileServer

    def do_GET(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        state.asked.append((path, self.headers.get("Range", "")))
        state.agents.add(self.headers.get("User-Agent", ""))
        if state.answers:
            status, headers = state.answers.pop(0)
            self._answer(status, headers | {"Content-Length": "0"})
        elif path in state.redirects:
            self._answer(302, {"Location": state.redirects[path], "Content-Length": "0"})
        elif path not in state.files:
            self._answer(404, {"Content-Length": "0"})
        else:
            self._send(state.files[path])

    def _send(self, content: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.state.ranges else None
        start = int(match[1]) if match else 0
        if match and start >= len(content):
            self._answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if match else {}
        headers |= (
            {"Content-Length": str(len(content) - start)} if self.state.lengths else {"Transfer-Encoding": "chunked"}
        )
        self._answer(206 if match else 200, headers)
        self._write(content[start:])

    def _write(self, content: bytes) -> None:
        cut = self.state.cuts.pop(0) if self.state.cuts else None
        if self.state.hold_after is not None:
            self._piece(content[: self.state.hold_after])
            self.state.go.wait()
            content = content[self.state.hold_after :]
        self._piece(content[:cut])
        if cut is not None:
            self.close_connection = True
        elif not self.state.lengths:
            self.wfile.write(b"0\r\n\r\n")

    def _piece(self, content: bytes) -> None:
        framed = content if self.state.lengths else b"%x\r\n%b\r\n" % (len(content), content)
        self.wfile.write(framed)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (self.state.headers | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
