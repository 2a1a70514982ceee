"""A TCP proxy on loopback that can be cut, as a network can: nothing gets through, nothing ends."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator

LOOK_S = 0.05


class Proxy:
    """Passes on what comes to ``port``; ``cut`` and ``mend`` hold for old and new connections."""

    def __init__(self, target: tuple[str, int]):
        self.target, self.through, self.ended = target, threading.Event(), threading.Event()
        self.through.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.through.clear()

    def mend(self) -> None:
        self.through.set()

    def end(self) -> None:
        self.ended.set()
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._until_through()
            with socket.create_connection(self.target) as server:
                other = {client: server, server: client}
                while not self.ended.is_set():
                    for source in select.select([client, server], [], [], LOOK_S)[0]:
                        self._until_through()
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        other[source].sendall(data)

    def _until_through(self) -> None:
        while not self.through.is_set() and not self.ended.is_set():
            time.sleep(LOOK_S)


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(("127.0.0.1", port))
    try:
        yield proxy
    finally:
        proxy.end()
