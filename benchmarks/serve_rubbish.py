"""Throws rubbish at a server of `sid-ray serve`, and says what each piece was answered with.

    python -m benchmarks.serve_rubbish http://127.0.0.1:8000 [--token-file FILE] [--seconds 30]

Every piece must be answered 4xx, in the one shape of errors and shorter than 1,000 bytes, or the
connection closed; what reads HTTP itself may answer in its own words. After the list come damaged
bodies for as long as --seconds says. At the end the server must still make the images that it made
at the start, to the byte. Exit code 1 where one of this is not so.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LONGEST_ERROR, ANSWER_S = 1000, 60  # bytes, seconds
JSON = "application/json"


@dataclass(frozen=True)
class Got:
    """``status`` is 0 where the connection was closed without an answer."""

    status: int
    body: bytes
    seconds: float
    sent: int

    @property
    def code(self) -> str:
        """Of an error in our shape."""
        try:
            return json.loads(self.body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def fine(self) -> bool:
        """Refused in few words."""
        return self.status == 0 or (400 <= self.status < 500 and len(self.body) <= LONGEST_ERROR)


class Server:
    """Where it is; sends bytes as they are, a connection each."""

    def __init__(self, url: str, token: str):
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.host, self.token = parts.netloc, token

    def request(
        self,
        body: bytes | Iterable[bytes] = b"",
        method: str = "POST",
        path: str = "/v1/images",
        length: bool = True,
        **headers: str | None,
    ) -> Got:
        """``headers``: with underscores for hyphens; None leaves one of the usual ones out.

        A body in parts is chunked.
        """
        usual: dict[str, str | None] = {"host": self.host, "content-type": JSON}
        if self.token:
            usual["authorization"] = f"Bearer {self.token}"
        if not isinstance(body, bytes):
            usual["transfer-encoding"] = "chunked"
        elif body and length:
            usual["content-length"] = str(len(body))
        usual |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}\r\n" for name, value in usual.items() if value is not None]
        head = f"{method} {path} HTTP/1.1\r\nconnection: close\r\n{''.join(lines)}\r\n"
        return self.raw(self._parts(head.encode("latin-1"), body))

    @staticmethod
    def _parts(head: bytes, body: bytes | Iterable[bytes]) -> Iterator[bytes]:
        yield head
        if isinstance(body, bytes):
            yield body
            return
        for part in body:
            yield b"%x\r\n%b\r\n" % (len(part), part)
        yield b"0\r\n\r\n"

    def raw(self, parts: Iterable[bytes]) -> Got:
        """Sends what it can, reads what comes."""
        began, sent, answer = time.perf_counter(), 0, b""
        with socket.create_connection(self.address, timeout=ANSWER_S) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    sent += len(part)
            except OSError:
                pass  # it closed; what it said before is read below
            try:
                while (part := connection.recv(65_536)) and len(answer) < 2**26:
                    answer += part
            except OSError:
                pass
        seconds = time.perf_counter() - began
        head, _, body = answer.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        return Got(status, unchunked(body) if b"chunked" in head.lower() else body, seconds, sent)


def unchunked(body: bytes) -> bytes:
    """A chunked body in one piece."""
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size or b"0", 16)
        found, body = found + rest[:count], rest[count + 2 :]
    return found


def right_request(model: dict[str, Any]) -> dict[str, object]:
    """Of a model of ``GET /v1/models``."""
    prompt = {"prompt": "a red heart"} if model["condition"] == "prompt" else {}
    return {"model": model["name"], "seeds": [1, 2]} | prompt


def bodies(right: dict[str, object]) -> dict[str, bytes]:
    """What is wrong in itself, in requests that are right otherwise."""
    fields: dict[str, dict[str, object]] = {
        "unknown field": {"sedes": [1]}, "unknown model": {"model": "../../etc/passwd"},
        "unknown network": {"network": "__class__"}, "seeds: 10^9": {"seeds": 10**9},
        "seeds: text": {"seeds": "0-63"}, "seeds: none": {"seeds": []},
        "seeds: 10,000": {"seeds": list(range(10_000))}, "seeds: -1": {"seeds": [-1]},
        "seeds: 2^32": {"seeds": [2**32]}, "seeds: 1.5": {"seeds": [1.5]},
        "seeds: true": {"seeds": [True]}, "seeds: null": {"seeds": None},
        "class: 10^6": {"class": 10**6}, "class: -1": {"class": -1},
        "class: a list": {"class": [1]}, "prompt and class": {"prompt": "x", "class": 0},
        "prompt: 20,001 characters": {"prompt": "x" * 20_001}, "prompt: a number": {"prompt": 1},
        "prompt: NUL": {"prompt": "a\0b"}, "prompt: lone surrogate": {"prompt": "\ud800"},
        "steps: 0": {"steps": 0}, "steps: 10^18": {"steps": 10**18},
        "size: huge": {"size": [10**9, 10**9]}, "size: one number": {"size": 64},
    }  # fmt: skip
    made = {name: json.dumps(right | one).encode() for name, one in fields.items()}
    return made | {
        "no JSON": b"seeds=1&prompt=x",
        "empty": b"",
        "half of it": b'{"seeds": [1',
        "a list": b"[]",
        "NaN": b'{"seeds": [NaN]}',
        "1e999": b'{"seeds": [1e999]}',
        "a number of 5,000 digits": b'{"seeds": [' + b"9" * 5000 + b"]}",
        "a field twice": b'{"seeds": [1], "seeds": [2]}',
        "60,000 lists in lists": b"[" * 60_000,
        "500 objects in objects": b'{"a":' * 500 + b"1" + b"}" * 500,
        "not UTF-8": b'{"prompt": "\xff\xfe"}',
        "UTF-16": '{"seeds": [1]}'.encode("utf-16"),
        "NUL bytes": b"\0" * 1000,
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }


def endless(part: bytes, most: float = 1e9) -> Iterator[bytes]:
    """Up to ``most`` bytes; a server takes a fraction of it."""
    sent = 0.0
    while sent < most:
        yield part
        sent += len(part)


def dripping(part: bytes, times: int, pause_s: float) -> Iterator[bytes]:
    """Part by part, slowly."""
    for _ in range(times):
        yield part
        time.sleep(pause_s)


def pieces(
    server: Server, rights: Sequence[dict[str, object]]
) -> Iterator[tuple[str, Callable[[], Got]]]:
    """(name, how it is thrown) of all rubbish: wrong bodies for each model, the rest once."""
    ask = server.request
    good = json.dumps(rights[0]).encode()
    for right in rights:
        for name, body in bodies(right).items():
            yield f"{right['model']:.20}: {name}", lambda body=body: ask(body)
    prompt = json.dumps(rights[0] | {"prompt": "x" * 10_000_000}).encode()
    yield "body: prompt of 10 MB", lambda: ask(prompt)
    yield "body: 10^9 seeds, chunked", lambda: ask(endless(b"0," * 32_768))
    packed = gzip.compress(b"x" * 10**8, 1)
    yield "body: gzip of 100 MB", lambda: ask(packed, content_encoding="gzip")
    yield "body: slow", lambda: ask(dripping(b" ", 60, 0.5))
    yield "body: never comes", lambda: ask(b"", content_length="100")
    yield "length: negative", lambda: ask(good, content_length="-1")
    yield "length: 5,000 digits", lambda: ask(good, content_length="9" * 5000)
    yield "length: and chunked", lambda: ask(endless(b"x", 1), content_length="1")
    for kind in (None, "text/plain", "multipart/form-data; boundary=x", f"{JSON};charset=x"):
        yield f"content-type: {kind}", lambda kind=kind: ask(good, content_type=kind)
    yield "accept: text/html", lambda: ask(good, accept="text/html")
    for host in (None, "evil.example", "127.0.0.1.evil.example", "a b", "localhost:99999999"):
        yield f"host: {host}", lambda host=host: ask(good, host=host)
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        yield f"origin: {origin}", lambda origin=origin: ask(good, origin=origin)
    yield "header: 20 kB", lambda: ask(good, x_long="x" * 20_000)
    yield "header: 10 MB", lambda: ask(good, x_long="x" * 10_000_000)
    yield "header: 5,000 of them", lambda: ask(good, **{f"x-{n}": "x" for n in range(5000)})
    if server.token:
        yield "token: none", lambda: ask(good, authorization=None)
        yield "token: wrong", lambda: ask(good, authorization="Bearer x")
        yield "token: not ASCII", lambda: ask(good, authorization="Bearer \xff")
    for path in (
        "/page/..%2f..%2fetc/passwd", "/page/../../etc/passwd", "/page/%2e%2e/x", "//etc/passwd",
        "/page/page.js%00.css", "/page/" + "x" * 5000, "/v1/models/../images", "/docs", "/v1/%ff",
        "*",
    ):  # fmt: skip
        yield f"path: {path[:40]}", lambda path=path: ask(method="GET", path=path)
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"):
        yield f"method: {method}", lambda method=method: ask(method=method)
    yield "websocket", lambda: ask(
        method="GET", path="/v1/models", connection="Upgrade", upgrade="websocket",
        sec_websocket_version="13", sec_websocket_key="x" * 22 + "==", origin="http://evil.example",
    )  # fmt: skip
    yield "no HTTP", lambda: server.raw([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20])
    yield "no HTTP: a line", lambda: server.raw([b"hello\r\n\r\n"])
    yield "HTTP/9.9", lambda: server.raw([b"GET / HTTP/9.9\r\n\r\n"])


def damaged(good: bytes, seconds: float, seed: int) -> Iterator[bytes]:
    """Bodies with bytes changed, cut, doubled."""
    draw, until = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        body = bytearray(good)
        for _ in range(draw.randint(1, 2)):
            start, end = sorted(draw.randrange(len(body) + 1) for _ in range(2))
            change = draw.randrange(3)
            if change == 0:
                body[start:end] = draw.randbytes(draw.randint(0, 4))
            elif change == 1:
                body[start:start] = body[start:end]
            else:
                odd = (b'"', b"[", b"{", b"\\u0000", b"-", b"e9", b"\xff")
                body[start:start] = draw.choice(odd)
            body = body[:4096] or bytearray(b" ")
        yield bytes(body)


def main() -> int:
    """Prints the table; 1 where something was not refused as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--token-file", type=Path, help="with the token that the server wants")
    parser.add_argument("--seconds", type=float, default=30, help="of damaged bodies")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    asked = parser.parse_args()
    token = asked.token_file.read_text().strip() if asked.token_file else ""
    server = Server(asked.url, token)
    models = json.loads(server.request(method="GET", path="/v1/models").body)["models"]
    wholes = [right_request(model) for model in models]
    before, wrong = [pictures(server, whole) for whole in wholes], 0
    print(f"| {'input':44} | status | {'code':20} | bytes sent | seconds |")
    print(f"|{'-' * 46}|-------:|{'-' * 22}|-----------:|--------:|")
    for name, throw in pieces(server, wholes):
        got = throw()
        wrong += not got.fine
        status = str(got.status or "closed") + ("" if got.fine else " !")
        print(f"| {name:44} | {status:6} | {got.code:20} | {got.sent:10,} | {got.seconds:7.2f} |")
    counts: Counter[int] = Counter()
    each_s = asked.seconds / len(wholes)
    broken = (damaged(json.dumps(whole).encode(), each_s, asked.seed) for whole in wholes)
    for body in itertools.chain.from_iterable(broken):
        got = server.request(body)
        counts[got.status] += 1
        if not (got.fine or got.status == 200):
            wrong += 1
            print(f"{got.status} for {body!r}", file=sys.stderr)
    if counts:
        told = ", ".join(f"{status or 'closed'}: {n:,}" for status, n in sorted(counts.items()))
        print(f"{counts.total():,} damaged bodies: {told}")
    same = [pictures(server, whole) for whole in wholes] == before
    print(f"{wrong} wrong; the images are {'the same' if same else 'OTHER ONES'} afterwards")
    return int(bool(wrong) or not same)


def pictures(server: Server, whole: dict[str, object]) -> list[str]:
    """PNGs of a right request."""
    got = server.request(json.dumps(whole).encode())
    assert got.status == 200, got
    return [image["png"] for image in json.loads(got.body)["images"]]


if __name__ == "__main__":
    sys.exit(main())
