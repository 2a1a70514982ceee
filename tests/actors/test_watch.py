"""Nodes that answer nobody: sockets of this machine stand for raylets."""

import socket

import pytest

from sid_ray.actors import watch
from sid_ray.actors.watch import TRIES, Watch, answering, elsewhere


@pytest.fixture
def ports():
    """A port that takes connections, one that refuses them, and one whose backlog is full."""
    with socket.socket() as open_port, socket.socket() as closed, socket.socket() as stuck:
        for one in (open_port, closed, stuck):
            one.bind(("127.0.0.1", 0))
        open_port.listen(64)
        stuck.listen(0)
        kept = []
        for _ in range(4):  # nobody takes them: the kernel drops what comes behind
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(stuck.getsockname())
            kept.append(waiting)
        yield {name: one.getsockname()[1] for name, one in
               (("open", open_port), ("closed", closed), ("stuck", stuck))}  # fmt: skip
        for waiting in kept:
            waiting.close()


def node(name, port, alive=True):
    found = {"NodeID": name, "Alive": alive, "NodeManagerAddress": "127.0.0.1"}
    return found | {"NodeManagerPort": port}


def test_a_killed_or_silent_node_is_known_by_its_port(ports):
    nodes = [node(name, port) for name, port in ports.items()]
    assert answering([*nodes, node("dead", ports["open"], alive=False)], 0.2) == {"open"}


def test_a_node_is_lost_when_it_was_silent_several_times_in_a_row(ports, monkeypatch):
    monkeypatch.setattr(watch.node_answers, "__defaults__", (0.1,))
    seen = Watch()
    up, down = node("a", ports["open"]), node("a", ports["closed"])
    for _ in range(TRIES - 1):
        seen.look([down])
    assert seen.lost == set()
    seen.look([up])
    for _ in range(TRIES - 1):
        seen.look([down])
    assert seen.lost == set()
    seen.look([down])
    assert seen.lost == {"a"}
    seen.look([up])
    assert seen.lost == set()


def test_nodes_that_ray_knows_to_be_dead_are_not_lost(ports):
    seen = Watch()
    for _ in range(TRIES):
        seen.look([node("a", ports["closed"], alive=False)])
    assert seen.lost == set()


def test_workers_are_placed_elsewhere():
    assert elsewhere(set()) is None
    assert elsewhere({"b", "a"}) == {"ray.io/node-id": "!in(a,b)"}
