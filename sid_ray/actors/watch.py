"""Nodes that answer nobody any more, noticed within ten seconds.

A machine that loses its power, or its network, says no goodbye. Ray's default health checks take it
for alive for more than a minute; as long the other workers wait for it in a collective. Here its
raylet's port is tried: the kernel answers for it, however busy the node's processes are, so a slow
node is never taken for a dead one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray

CONNECT_TIMEOUT_S = 1.75  # time for a packet that was lost once
TRIES = 3  # in a row
PAUSE_S = 0.25
LOST_S = TRIES * (CONNECT_TIMEOUT_S + PAUSE_S)
AT_ONCE = 32
NODE_ID = "ray.io/node-id"  # a label that Ray gives every node


def node_answers(node: Mapping[str, Any], timeout_s: float = CONNECT_TIMEOUT_S) -> bool:
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        with socket.create_connection(address, timeout=timeout_s):
            return True
    except OSError:
        return False


def answering(nodes: Iterable[Mapping[str, Any]], timeout_s: float = CONNECT_TIMEOUT_S) -> set[str]:
    """Nodes, of those that Ray takes for alive, whose raylet takes a connection."""
    alive = [node for node in nodes if node["Alive"]]
    with ThreadPoolExecutor(min(AT_ONCE, len(alive) or 1)) as pool:
        found = pool.map(lambda node: node_answers(node, timeout_s), alive)
        return {node["NodeID"] for node, there in zip(alive, found, strict=True) if there}


def elsewhere(nodes: Iterable[str]) -> dict[str, str] | None:
    """A label selector for any node but these; None where there are none."""
    return {NODE_ID: f"!in({','.join(sorted(nodes))})"} if nodes else None


class Watch(threading.Thread):
    """Tries the nodes again and again. ``lost``: those that Ray takes for alive and are silent."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watch")
        self._failures: dict[str, int] = {}
        self._ended = threading.Event()

    @property
    def lost(self) -> set[str]:
        return {node for node, count in self._failures.items() if count >= TRIES}

    def run(self) -> None:
        while not self._ended.wait(PAUSE_S):
            with suppress(Exception):  # Ray's head does not answer: nothing is known of any node
                self.look(ray.nodes())

    def look(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Counts who was silent how often in a row."""
        nodes = list(nodes)
        there = answering(nodes)
        before = self._failures
        self._failures = {
            node["NodeID"]: before.get(node["NodeID"], 0) + 1
            for node in nodes
            if node["Alive"] and node["NodeID"] not in there
        }

    def end(self) -> None:
        self._ended.set()
