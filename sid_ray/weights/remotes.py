"""One file behind https:// (through fsspec) or in a store (S3), as it is now.

What goes wrong is one of storage's errors, in one line that names the file without its secrets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from sid_ray.storage.errors import (
    DeniedStoreError,
    MissingFileError,
    StoreError,
    UnreachableStoreError,
)
from sid_ray.storage.places import one_line
from sid_ray.storage.store import Store, naming_errors
from sid_ray.weights.address import source_label

CHUNK = 16 << 20  # bytes of one request
TIMEOUT_S = 60  # without a byte


@dataclass(frozen=True)
class Remote:
    """A file elsewhere.

    Args:
        size: in bytes, None where the server does not say.
        version: another one says that the file has changed; None where the server does not say.
        has_parts: asks whether ``chunks`` can begin in the middle.
        chunks: its bytes, from this one on. Raises StoreError.
    """

    size: int | None
    version: str | None
    has_parts: Callable[[], bool]
    chunks: Callable[[int], Iterator[bytes]]


def look_in_store(store: Store) -> Remote:
    """The file at a store's own address. Raises StoreError."""
    with store.open("") as file, naming_errors(store.url):
        size, told = file.size(), file.metadata() or {}

    def chunks(start: int) -> Iterator[bytes]:
        with store.open("") as file, naming_errors(store.url):
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk

    version = told.get("ETag", b"").decode() or None
    return Remote(size, version, lambda: True, chunks)


def look_at_web(url: str) -> Remote:
    """The file behind an http(s) address. Raises StoreError."""
    filesystem, label = web_filesystem(), source_label(url)
    with web_failures(label):
        info = filesystem.info(url)
    size, version = info["size"], info.get("ETag") or info.get("Last-Modified")

    def open_parts() -> Any:
        return filesystem.open(url, block_size=CHUNK, size=size, cache_type="none")

    @cache
    def has_parts() -> bool:
        if not size or not info.get("partial", True) or (version or "").startswith("W/"):
            return False
        with web_failures(label), open_parts() as file, contextlib.suppress(ValueError):
            file.seek(size - 1)
            return len(file.read(1)) == 1
        return False  # ValueError: the whole file was sent

    def chunks(start: int) -> Iterator[bytes]:
        opened = open_parts if has_parts() else lambda: filesystem.open(url, block_size=0)
        with web_failures(label), opened() as file:
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk

    return Remote(size, version, has_parts, chunks)


def web_filesystem() -> Any:
    """fsspec's, with the environment's proxies. An address is sent as it was written."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    async def check_redirect(session: Any, context: Any, params: Any) -> None:
        target = urljoin(str(params.url), params.response.headers.get("Location", ""))
        old, new = params.url.scheme, urlsplit(target).scheme
        if new not in ("https", old):
            raise DeniedStoreError(f"the server leads from {old} to {new[:10]!a}")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_read=TIMEOUT_S)
    options = {"trace_configs": [trace], "timeout": timeout, "trust_env": True}
    return HTTPFileSystem(encoded=True, client_kwargs=options, skip_instance_cache=True)


@contextlib.contextmanager
def web_failures(label: str) -> Iterator[None]:
    """fsspec's and aiohttp's errors as StoreErrors; their own texts may hold a signed address."""
    try:
        yield
    except Exception as error:
        raise web_error(label, error) from None


def web_error(label: str, error: Exception) -> Exception:
    from aiohttp import ClientError

    # fsspec says "not found" of whatever failed; its cause tells.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    status = 404 if cause is None else getattr(cause, "status", 0)
    if isinstance(cause, StoreError):
        return type(cause)(f"no access to {label}: {cause}: check the link")
    if status in (404, 410):
        return MissingFileError(f"nothing at {label}: not found (HTTP {status}); check the name")
    if status in (401, 403):
        return DeniedStoreError(f"no access to {label} (HTTP {status}): check the link")
    if status and status < 500 and status not in (408, 425, 429):
        return StoreError(f"{label}: the server answered HTTP {status}: check the link")
    if isinstance(cause, ValueError):
        return StoreError(f"{label}: the address is not one, or the server leads to none")
    if not isinstance(cause, ClientError | OSError | TimeoutError):
        return error
    reason = f"HTTP {status}" if status else one_line(str(cause))[:160] or type(cause).__name__
    return UnreachableStoreError(f"{label} cannot be reached ({reason}): check the network")
