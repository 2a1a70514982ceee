"""Process groups on the address that Ray knows a node by: no host's name is looked up.

Left to itself, gloo looks up the host's own name, which many systems resolve to 127.0.1.1 or not at
all, and NCCL takes the first network that it finds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

# How each is told: gloo by a name, NCCL by a name's beginning, and with = by exactly that name.
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
DISCARD = 9  # a port; nothing is sent there


def interface_of(address: str, found: Mapping[str, Iterable[Any]]) -> str:
    """The network interface that has an address; empty for none.

    ``found`` is psutil's: interface -> its addresses.
    """
    for name, addresses in found.items():
        if any(has.address.partition("%")[0] == address for has in addresses):
            return name
    return ""


def own_address(towards: str) -> str:
    """This host's address on the way to another one; empty where there is no way."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as asked:
        try:
            asked.connect((towards, DISCARD))
        except OSError:
            return ""
        return asked.getsockname()[0]


def bind_to_node(given: Mapping[str, str]) -> None:
    """Runs on a worker. What is set on its node wins, then what the driver's user has set."""
    address, found = ray.util.get_node_ip_address(), psutil.net_if_addrs()
    name = interface_of(address, found)
    if not name:  # the address is a gateway's: take the way to Ray's head
        head = ray.get_runtime_context().gcs_address.rpartition(":")[0].strip("[]")
        name = interface_of(own_address(head), found)
    for variable, form in VARIABLES.items():
        value = given.get(variable) or (form.format(name) if name else "")
        if value:
            os.environ.setdefault(variable, value)


class ByAddress(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray Train's, after every worker was told its interface."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(bind_to_node, backend_config.given)
        super().on_start(worker_group, backend_config)


@dataclass
class AddressConfig(TorchConfig):
    """``given``: what the driver's user has set of VARIABLES."""

    given: dict[str, str] = field(
        default_factory=lambda: {name: os.environ[name] for name in VARIABLES if name in os.environ}
    )

    @property
    def backend_cls(self) -> type[ByAddress]:
        return ByAddress
