"""What a person asks of ``sid-ray serve``."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.device.choice import Device
from sid_ray.errors import UserError

TOKEN = "SID_RAY_SERVE_TOKEN"
SHORTEST_TOKEN = 8
LIKE_ADDRESS = re.compile(r"\d+\.\d+\.")  # no host is called like 127.0.0.2x
NEEDED = ("fastapi", "uvicorn", "starlette")  # what ray[serve] brings


@dataclass(frozen=True)
class ServeOptions:
    """Serves generators over HTTP: a page to try them, and POST /v1/images for programs.

    Replicas of each come and go with the load; images of all clients are made in batches.
    """

    runs: Annotated[tuple[str, ...], Positional, arg(metavar="RUN")]
    """Runs' folders, checkpoints or generators' weights, as sid-ray generate takes them; NAME=RUN
    serves one by another name than its folder's."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token."""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """Port to listen on."""
    replicas: str = "auto"
    """Of each generator: a number, or a range like 1-4. auto: from one to as many as there are
    GPUs; without GPUs, up to four of a quarter of the CPUs each, for all generators."""
    batch: str = "auto"
    """Images at once, at most; auto: 64 on GPUs, 32 on CPUs."""
    device: Device = "auto"
    """auto: GPUs where there are any."""
    token_file: Path | None = None
    """File with a word that clients must send (Authorization: Bearer WORD); SID_RAY_SERVE_TOKEN in
    the environment does the same."""
    allow_host: str = ""
    """Names that the server is reached by through a proxy or a tunnel, a comma between."""
    images: Annotated[int, Interval(ge=1, le=1024)] = 64
    """Images per request, at most."""
    queue: Annotated[int, Interval(ge=1, le=1_000_000)] = 1024
    """Images of all requests that may wait or be made, of each generator; more are answered with
    429 and when to ask again."""

    def check(self) -> None:
        """Raises UserError for what makes no sense, before anything is opened."""
        if not self.runs:
            raise UserError("RUN is missing: name a run's folder, or several")
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"serve needs {missing[0]}, which is not installed: pip install 'sid_ray[serve]'"
            )
        from sid_ray.serving.places import ReplicaRange, batch_size

        ReplicaRange.of(self.replicas)
        batch_size(self.batch)
        if self.images > self.queue:
            raise UserError(
                f"--queue {self.queue} is smaller than --images {self.images}: a request of so "
                "many would always be refused"
            )
        if not is_loopback(self.host) and not self.token():
            raise UserError(
                f"--host {self.host} lets other machines in: give --token-file FILE, or set "
                f"{TOKEN}, so that not everybody may use it"
            )

    def token(self) -> str:
        """What clients must send; empty for nothing. Raises UserError."""
        if self.token_file is None:
            found, where = os.environ.get(TOKEN, "").strip(), TOKEN
            if not found:
                return ""
        else:
            where = f"--token-file {self.token_file}"
            try:
                with self.token_file.expanduser().open(encoding="utf-8") as file:
                    found = file.read(4096).strip()
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise UserError(f"{where}: {why}") from None
        if len(found) < SHORTEST_TOKEN or not (found.isascii() and found.isprintable()):
            raise UserError(
                f"{where} holds no token: one word of {SHORTEST_TOKEN} characters or more is "
                "expected, like what `openssl rand -hex 16` prints"
            )
        if any(each.isspace() for each in found):
            raise UserError(f"{where} holds more than one word")
        return found

    def hosts(self) -> list[str]:
        """Names in requests that are answered; * for any, where a token keeps strangers out."""
        if not is_loopback(self.host):
            return ["*"]
        named = [each.strip() for each in self.allow_host.split(",") if each.strip()]
        return ["localhost", "127.0.0.1", "::1", self.host, *named]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Raises UserError for what is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        odd = not host or any(each.isspace() or each in "/:@" for each in host)
        if odd or LIKE_ADDRESS.match(host):
            raise UserError(f"--host {host!r:.100}: expected an address, like 127.0.0.1") from None
        return False
