"""Files behind https://, hf:// and s3://, read from any byte on.

A Remote opens one file; what it raises is MissingError, DeniedError, UnreachableError (to try
again) or UserError. Credentials come from the environment and go to the host they are for, only.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from sid_ray.errors import UserError

CHUNK = 1 << 20
S3_CHUNK = 8 << 20
TIMEOUT_S = 60
FILE_SUFFIXES = (".pkl", ".pt", ".pth", ".bin", ".safetensors", ".ckpt")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class MissingError(Exception):
    """There is no such file."""


class DeniedError(Exception):
    """The file is not for this user."""


class UnreachableError(Exception):
    """The server did not answer, or stopped in the middle."""


@dataclass
class Opened:
    """A file being read from byte ``start``; ``size`` and ``etag`` are of the whole file.

    ``unchanged`` says that the file is the one whose etag was asked with; then there are no bytes.
    """

    start: int
    size: int | None
    etag: str | None
    chunks: Iterator[bytes]
    unchanged: bool = False


class Remote(Protocol):
    """One remote file."""

    def open(self, start: int, etag: str | None, known: str | None) -> Opened:
        """Opens from ``start`` if the file still has ``etag``, else from 0.

        ``known`` is the etag of a whole local copy: if it is the file's, nothing is sent.
        """
        ...


class SafeRedirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and leaves the token behind at another host."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            old, new = urlsplit(req.full_url), urlsplit(newurl)
            if new.scheme not in ("https", old.scheme):
                raise DeniedError(f"the server leads from {old.scheme} to {new.scheme[:10]!a}")
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                request.headers.pop("Authorization", None)
        return request


class HttpRemote:
    """A file behind http(s).

    ``token`` is sent as a bearer to the url's own host, and so are a user name and a password that
    stand in the url.
    """

    def __init__(self, url: str, token: str | None = None):
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=host))
        self.authorization = f"Bearer {token}" if token else None
        if user:
            pair = base64.b64encode(unquote(user).encode()).decode()
            self.authorization = f"Basic {pair}"
        self.opener = urllib.request.build_opener(SafeRedirect)

    def request(self, start: int, etag: str | None, known: str | None) -> urllib.request.Request:
        headers = {"User-Agent": "sid_ray", "Accept-Encoding": "identity"}
        if self.authorization:
            headers["Authorization"] = self.authorization
        if start and etag:
            headers |= {"Range": f"bytes={start}-", "If-Range": etag}
        elif known:
            headers["If-None-Match"] = known
        return urllib.request.Request(self.url, headers=headers)

    def open(self, start: int, etag: str | None, known: str | None) -> Opened:
        start = start if etag and not etag.startswith("W/") else 0
        try:
            response = self.opener.open(self.request(start, etag, known), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 304:
                    return Opened(0, None, known, iter(()), unchanged=True)
                if error.code == 416 and start:  # the file became shorter: all of it
                    return self.open(0, None, None)
                raise http_failure(error.code) from None
        except http.client.InvalidURL:  # its text holds the url
            raise UserError("the address is not one") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(str(reason) or type(reason).__name__) from None
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        resumed = response.status == 206
        if resumed:
            span = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", span)
            if match is None or int(match[1]) != start:
                response.close()
                raise UnreachableError("the server resumed at another place than asked")
            size = int(match[2])
        return Opened(
            start if resumed else 0, size, response.headers.get("ETag"), _http_chunks(response)
        )


def http_failure(code: int) -> Exception:
    if code in (404, 410):
        return MissingError(f"HTTP {code}")
    if code in (401, 403):
        return DeniedError(f"HTTP {code}")
    if code >= 500 or code in (408, 425, 429):
        return UnreachableError(f"HTTP {code}")
    return UserError(f"the server answered HTTP {code}")


def _http_chunks(response: Any) -> Iterator[bytes]:
    with response:
        try:
            while chunk := response.read(CHUNK):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(str(error) or type(error).__name__) from None


class S3Remote:
    """An object of S3, through s3fs: AWS_ENDPOINT_URL and the usual variables are honoured."""

    def __init__(self, filesystem: Any, path: str):
        self.filesystem, self.path = filesystem, path

    def open(self, start: int, etag: str | None, known: str | None) -> Opened:
        with s3_failures():
            info = self.filesystem.info(self.path)
        if info.get("type") == "directory":
            raise MissingError("it is a prefix")
        size, found = int(info["size"]), str(info.get("ETag") or "") or None
        if known is not None and known == found:
            return Opened(0, size, found, iter(()), unchanged=True)
        start = start if etag is not None and etag == found and start <= size else 0
        return Opened(start, size, found, self._chunks(start, size))

    def _chunks(self, start: int, size: int) -> Iterator[bytes]:
        while start < size:
            with s3_failures():
                chunk = self.filesystem.cat_file(
                    self.path, start=start, end=min(start + S3_CHUNK, size)
                )
            if not chunk:
                raise UnreachableError("the object ended before its size")
            start += len(chunk)
            yield chunk


@contextlib.contextmanager
def s3_failures() -> Iterator[None]:
    """s3fs' and botocore's errors as those of this file."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError("no such object") from None
    except PermissionError as error:
        raise DeniedError(type(error).__name__) from None
    except Exception as error:  # botocore has no common root with OSError
        name = type(error).__name__
        if "Credential" in name or "Token" in name:
            raise DeniedError("no AWS credentials were found") from None
        if isinstance(error, OSError) or "Connection" in name or "Timeout" in name:
            raise UnreachableError(f"{name}: the S3 server did not answer") from None
        raise


def s3_filesystem() -> Any:
    """s3fs with the environment's settings."""
    import s3fs

    # Listings are not kept: another process may have written since.
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@dataclass(frozen=True)
class HubFile:
    """hf://owner/repo[/path][@revision], taken apart; ``path`` may be a folder, or empty."""

    repo: str
    path: str
    revision: str

    @classmethod
    def parse(cls, location: str) -> HubFile:
        """Raises UserError where owner or repository is missing."""
        body, _, revision = location.removeprefix("hf://").partition("@")
        parts = body.rstrip("/").split("/")
        if len(parts) < 2 or not all(parts) or ".." in parts:
            raise UserError(f"{location}: expected hf://owner/repo[/path][@revision]")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or "main")

    def is_file(self) -> bool:
        """By its name: nothing is asked."""
        return Path(self.path).suffix in FILE_SUFFIXES

    def url(self, name: str = "") -> str:
        """Where the file is, or the file ``name`` of the folder."""
        path = "/".join(part for part in (self.path, name) if part)
        return f"{hf_endpoint()}/{self.repo}/resolve/{self._revision()}/{quote(path)}".rstrip("/")

    def listing_url(self) -> str:
        """Where the hub lists the folder's files."""
        base = f"{hf_endpoint()}/api/models/{self.repo}/tree/{self._revision()}"
        return f"{base}/{quote(self.path)}".rstrip("/") + "?recursive=true"

    def _revision(self) -> str:
        return quote(self.revision, safe="")

    def in_hub_cache(self, named_by: tuple[str, ...]) -> Path | None:
        """The file in the Hugging Face libraries' own cache, if they have fetched it; the folder
        where one of the files ``named_by`` is in it.
        """
        hub = Path(os.environ.get("HF_HUB_CACHE") or hf_home() / "hub")
        folder = hub / ("models--" + self.repo.replace("/", "--"))
        commit = self.revision
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (folder / "refs" / self.revision).read_text().strip()
        path = folder / "snapshots" / commit / self.path
        if path.is_file() or any((path / name).is_file() for name in named_by):
            return path
        return None


def hf_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hf_home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    return Path(os.environ.get("HF_HOME") or default).expanduser()


def hf_token() -> str | None:
    """HF_TOKEN, else what `hf auth login` left. Never shown."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    try:
        return (hf_home() / "token").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def hf_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
