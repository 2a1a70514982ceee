"""Which network interface a process group is bound to; a machine with several is faked."""

import os
from types import SimpleNamespace

import psutil
import pytest

from sid_ray.actors import interfaces
from sid_ray.actors.interfaces import AddressConfig, ByAddress, bind_to_node, interface_of


def addresses(*texts):
    return [SimpleNamespace(address=text) for text in texts]


FOUND = {
    "lo": addresses("127.0.0.1", "::1"),
    "eth0": addresses("10.0.0.7", "fe80::1%eth0"),
    "ib0": addresses("192.168.5.7"),
}


@pytest.fixture
def worker(monkeypatch):
    """A worker on a node with these interfaces; the address that Ray knows it by can be set."""
    for name in interfaces.VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    node = SimpleNamespace(address="10.0.0.7")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: FOUND)
    monkeypatch.setattr(interfaces.ray.util, "get_node_ip_address", lambda: node.address)
    context = SimpleNamespace(gcs_address="[fd00::9]:6379")
    monkeypatch.setattr(interfaces.ray, "get_runtime_context", lambda: context)
    return node


def bound():
    return tuple(os.environ.get(name) for name in interfaces.VARIABLES)


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.7", "eth0"), ("fe80::1", "eth0"), ("127.0.0.1", "lo"), ("10.0.0.70", "")],
)
def test_the_interface_that_has_the_nodes_address(address, name):
    assert interface_of(address, FOUND) == name


def test_both_libraries_are_told_exactly_that_one(worker):
    bind_to_node({})
    assert bound() == ("eth0", "=eth0")


def test_what_people_have_set_wins_the_nodes_first(worker, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    bind_to_node({"GLOO_SOCKET_IFNAME": "ib1", "NCCL_SOCKET_IFNAME": "ib2"})
    assert bound() == ("ib1", "ib0")


def test_an_address_that_no_interface_has_takes_the_way_to_the_head(worker, monkeypatch):
    worker.address, asked = "54.1.2.3", []
    monkeypatch.setattr(interfaces, "own_address", lambda to: asked.append(to) or "192.168.5.7")
    bind_to_node({})
    assert bound() == ("ib0", "=ib0") and asked == ["fd00::9"]


def test_where_there_is_no_way_nothing_is_set(worker, monkeypatch):
    worker.address = "54.1.2.3"
    monkeypatch.setattr(interfaces, "own_address", lambda to: "")
    bind_to_node({})
    assert bound() == (None, None)


def test_the_way_to_this_machine_is_loopback():
    assert interfaces.own_address("127.0.0.1") == "127.0.0.1"


def test_workers_are_told_before_their_process_group_is_made(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    done = []
    monkeypatch.setattr(ByAddress.__mro__[1], "on_start", lambda *_: done.append("process group"))
    group = SimpleNamespace(execute=lambda work, given: done.append((work, given)))
    config = AddressConfig(backend="gloo")
    config.backend_cls().on_start(group, config)
    assert done == [(bind_to_node, {"GLOO_SOCKET_IFNAME": "eth9"}), "process group"]
