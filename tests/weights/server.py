"""A loopback file server that answers ranges, and misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves ``files``. ``cuts`` holds, for the next answers, how many bytes to send before the
    connection breaks; ``requests`` keeps (path, headers) of every request.
    """

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.status: dict[str, int] = {}
        self.cuts: list[int] = []
        self.ranges, self.etags, self.token = True, True, ""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(code)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()
            self.server.sent += len(body)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.requests.append((f"{self.command} {self.path}", dict(self.headers)))
        if path in server.redirects:
            return self.answer(302, {"Location": server.redirects[path]})
        if path in server.status:
            return self.answer(server.status[path], {})
        if server.token and self.headers.get("Authorization") != server.token:
            return self.answer(401, {})
        if path not in server.files:
            return self.answer(404, {})
        return self.send_file(server.files[path])

    def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """The file, or the part of it that is asked for, unless ``cuts`` breaks the connection."""
        etag = '"' + hashlib.sha256(data).hexdigest()[:16] + '"'
        headers = dict(headers or ({"ETag": etag} if self.server.etags else {}))
        code, begin, end = 200, 0, len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            code, begin = 206, int(wanted[1])
            end = min(int(wanted[2]) + 1 if wanted[2] else end, end)
            if begin >= len(data):
                return self.answer(416, headers)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        body = data[begin:end]
        headers["Content-Length"] = str(len(body))
        if self.command == "GET" and self.server.cuts and len(body) > 1:
            body = body[: self.server.cuts.pop(0)]
        return self.answer(code, headers, body)


@contextmanager
def serving(kind=FileServer):
    """A server on a free port of the loopback."""
    server = kind()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
