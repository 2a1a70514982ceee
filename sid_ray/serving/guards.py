"""What stands before every request: names of the server, the token, sizes and times.

Plain ASGI without a library, so that it fits in front of anything. ``web_app`` wears it. Ray
Serve's HTTP proxy reads bodies ahead of its replicas, until one has answered; the proxy of Ray
2.60 takes no middleware.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from sid_ray.serving.contract import Limits
from sid_ray.serving.problems import Problem, as_found, clipped

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ANY_NAME = "*"
LIVENESS = ("/healthz", "/-/healthz")  # ours, and that of Ray Serve's proxy
OPEN_PATHS = ("/", "/openapi.json", *LIVENESS)
OPEN_FOLDER = "/page/"
HEADER_BYTES, PATH_BYTES = 16_384, 2048
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(:\d{1,5})?")
OWN_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)

log = logging.getLogger(__name__)


class Guards:
    """ASGI middleware. ``hosts``: names that the server is reached by, without ports; '*' is any.

    With a ``token`` everything but the page, its files, /openapi.json and liveness wants it.
    """

    def __init__(
        self,
        app: AsgiApp,
        limits: Limits,
        token: str = "",
        hosts: Sequence[str] = LOOPBACK_NAMES,
    ):
        self.app, self.limits = app, limits
        self.hosts = tuple(dict.fromkeys(bare_name(host) for host in hosts))
        self._token = token.encode()
        self._under_way = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, _Answer(send))

    async def _answer(self, scope: Message, receive: Receive, send: _Answer) -> None:
        self._under_way += 1
        try:
            self._check(scope)
            body = await read_body(receive, self.limits)
            if body is not None:
                await self.app(scope, _replayed(body, receive), send)
        except Problem as problem:
            await send.problem(problem, close=True)
        except Exception:
            reference = secrets.token_hex(4)
            place = f"{scope['method']} {clipped(scope['path'], 100)}"
            log.exception("%s failed, reference %s", place, reference)
            if send.started:
                raise  # the connection is closed: what was sent must not look whole
            words = f"the server failed at this; its log says how, under {reference}"
            await send.problem(Problem(500, "failed", words), close=True)
        finally:
            self._under_way -= 1

    def _check(self, scope: Message) -> None:
        """What can be said before the body is read. Raises Problem."""
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
            text = f"the headers have more than {HEADER_BYTES:,} bytes"
            raise Problem(431, "headers_too_large", text)
        if len(scope["path"]) + len(scope.get("query_string", b"")) > PATH_BYTES:
            raise Problem(414, "path_too_long", f"the address has more than {PATH_BYTES:,} bytes")
        path = route_path(scope)
        if path in LIVENESS:
            return  # probes come by the machine's address, and are told nothing else
        if self._under_way > self.limits.requests:
            text = f"{self.limits.requests:,} requests are being answered; ask again in 1 s"
            raise Problem(429, "too_many_requests", text, headers={"retry-after": "1"})
        host = self._host(values(headers, b"host"))
        for origin in values(headers, b"origin"):
            check_origin(origin, host)
        if self._token and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            self._check_token(values(headers, b"authorization"))
        check_length(values(headers, b"content-length"), self.limits.body_bytes)

    def _host(self, found: Sequence[bytes]) -> str:
        """The Host header, if it is one of ours: a page that makes its own name mean this machine
        (DNS rebinding) is not answered.
        """
        text = found[0].decode("latin-1").lower() if len(found) == 1 else ""
        match = HOST.fullmatch(text)
        if match is None:
            what = as_found(text) if found else "none"
            raise Problem(400, "bad_host", f"one Host header with a name was expected, not {what}")
        if ANY_NAME not in self.hosts and bare_name(match[1]) not in self.hosts:
            raise Problem(
                421,
                "unknown_host",
                f"this server does not go by the name {as_found(match[1])}; its names are "
                f"{clipped(', '.join(self.hosts), 200)}, and more are given when it is started",
            )
        return text

    def _check_token(self, found: Sequence[bytes]) -> None:
        scheme, _, given = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(given.strip(), self._token)
        if scheme.lower() != b"bearer" or not right:
            what = "another token was sent" if given else "none was sent"
            raise Problem(
                401,
                "token_wanted",
                f'the header "Authorization: Bearer TOKEN" is wanted; {what}',
                headers={"www-authenticate": 'Bearer realm="sid-ray"'},
            )


class _Answer:
    """``send`` with our headers; knows whether an answer has begun."""

    def __init__(self, send: Send):
        self._send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            there = {name.lower() for name, _ in message.get("headers", ())}
            ours = [*OWN_HEADERS, (b"cache-control", b"no-store")]
            added = [(name, value) for name, value in ours if name not in there]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await self._send(message)

    async def problem(self, problem: Problem, close: bool) -> None:
        """``close``: a body may still be coming, and nobody reads it."""
        body = problem.body()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **({"connection": "close"} if close else {}),
            **problem.headers,
        }
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": lines})
        await self({"type": "http.response.body", "body": body})


def values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Of all headers of a name, which is in small letters as ASGI has them."""
    return [value for each, value in headers if each == name]


def bare_name(host: str) -> str:
    """Without the brackets of an IPv6 address and the dot of a full name."""
    return host.strip("[]").rstrip(".").lower()


def route_path(scope: Message) -> str:
    """The path below the place that the application is mounted at."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def check_origin(origin: bytes, host: str) -> None:
    """A browser says which page asks: only our own may. Raises Problem."""
    text = origin.decode("latin-1").lower()
    try:
        parts = urlsplit(text)
        own = parts.scheme in ("http", "https") and parts.netloc == host
    except ValueError:
        own = False
    if not own:
        words = f"pages of {as_found(text)} may not ask this server; it answers pages of its own"
        raise Problem(403, "foreign_origin", words)


def check_length(found: Sequence[bytes], most: int) -> None:
    """A body that says itself that it is too large is not begun. Raises Problem."""
    for text in found:
        if not text.isdigit():
            raise Problem(400, "bad_length", "the Content-Length header is no number")
        if len(text) > 18 or int(text) > most:
            raise too_large(most)


def too_large(most: int) -> Problem:
    return Problem(413, "body_too_large", f"the body has more than {most:,} bytes")


async def read_body(receive: Receive, limits: Limits) -> bytes | None:
    """All of it; None where the client went away. Raises Problem: too large, too slow."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.body_bytes:
                    raise too_large(limits.body_bytes)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        text = f"the body took longer than {limits.body_s:g} s to come"
        raise Problem(408, "body_too_slow", text) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application: the body at once, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
