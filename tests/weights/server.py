"""A loopback file server that answers ranges, and misbehaves on request; and a made-up S3."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves ``files``. ``cuts`` holds, for the next answers, how many bytes to send before the
    connection breaks; ``requests`` keeps (path, headers) of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
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
        self.wfile.write(body)
        self.wfile.flush()
        self.server.sent += len(body)
        self.close_connection = True

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.requests.append((self.path, dict(self.headers)))
        if path in server.redirects:
            return self.answer(302, {"Location": server.redirects[path]})
        if path in server.status:
            return self.answer(server.status[path], {})
        if server.token and self.headers.get("Authorization") != server.token:
            return self.answer(401, {})
        if path not in server.files:
            return self.answer(404, {})
        return self.send_file(server.files[path])

    def send_file(self, data: bytes) -> None:
        etag = '"' + hashlib.sha256(data).hexdigest()[:16] + '"'
        headers = {"ETag": etag} if self.server.etags else {}
        if self.headers.get("If-None-Match") == etag:
            return self.answer(304, headers)
        start, code = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.server.ranges and self.headers.get("If-Range") == etag:
            start, code = int(wanted[1]), 206
            if start >= len(data):
                return self.answer(416, headers)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = str(len(data) - start)
        body = data[start:]
        return self.answer(
            code, headers, body[: self.server.cuts.pop(0)] if self.server.cuts else body
        )


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server on a free port of the loopback."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class NoCredentialsError(Exception):
    """Named as botocore's."""


class MadeUpS3:
    """As much of s3fs as is used, over a dict of objects."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures: list[Exception] = []
        self.reads: list[tuple[int, int]] = []

    def fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def info(self, path: str) -> dict:
        self.fail()
        if path in self.objects:
            data = self.objects[path]
            etag = '"' + hashlib.md5(data).hexdigest() + '"'
            return {"type": "file", "size": len(data), "ETag": etag}
        if any(name.startswith(path + "/") for name in self.objects):
            return {"type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def find(self, path: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(path + "/"))

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.fail()
        self.reads.append((start, end))
        return self.objects[path][start:end]
