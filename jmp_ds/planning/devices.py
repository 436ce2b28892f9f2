"""Devices and links: what data sheets say (devices.json, with sources), and what share of it is taken to be reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jmp_ds.errors import UserError
from jmp_ds.planning.memory import USABLE
from jmp_ds.planning.offload import Host

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a step's time and memory are reckoned with.

    Attributes:
        name, title: for people.
        memory: bytes.
        flops: operations per second of matrix products that are reached, by what they are computed in.
        bandwidth: bytes per second of memory that are reached.
        passes: how often every kept byte is moved in forward and backward besides products.
        per_operation: seconds that starting an operation takes.
        concurrent: whether operations are started while others run (a GPU), or not (a CPU).
        roofline: whether products are bound by the memory's rate, too; not where `flops` was fitted to whole steps.
        measured: whether the figures come from steps on this device.
        link: name of the link between devices of a node.
        host_link: name of the link to the machine's memory.
        source: where the figures come from.
    """

    name: str
    title: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    passes: float
    per_operation: float
    concurrent: bool = True
    roofline: bool = True
    measured: bool = False
    link: str = "nvlink4"
    host_link: str = "pcie4"
    source: str = ""

    @property
    def usable(self) -> int:
        """Bytes that a plan may use."""
        return int(USABLE * self.memory)


@dataclass(frozen=True)
class Cluster:
    """How devices are joined.

    Attributes:
        gpus_per_node: devices of one machine.
        link: bytes per second that a device reaches to others of its node, one way.
        network: bytes per second that a node reaches to other nodes, one way.
        link_delay, network_delay: seconds per message.
        host: a machine beside its devices.
    """

    gpus_per_node: int
    link: float
    network: float
    link_delay: float
    network_delay: float
    host: Host

    def rate(self, world: int) -> float:
        """Bytes per second of rings through all processes: every node's ports carry what its links do."""
        return self.link if world <= self.gpus_per_node else min(self.link, self.network)


@cache
def _table() -> dict[str, Any]:
    text = (resources.files("jmp_ds.planning") / "devices.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def assumed() -> dict[str, Any]:
    """Shares, delays and passes that no data sheet tells, and where they come from."""
    return dict(_table()["assumed"])


def device_names() -> list[str]:
    """Devices of the table."""
    return list(_table()["devices"])


def device(name: str) -> Device:
    """A device of the table, with what is taken to be reached of its rates.

    Raises:
        UserError: no such device.
    """
    found, shares = _entry("devices", "device", name), assumed()
    return Device(
        name=name,
        title=found["title"],
        memory=int(found["memory_gib"] * GIB),
        flops={kind: shares["products"] * rate for kind, rate in found["flops"].items()},
        bandwidth=shares["memory"] * found["bandwidth"],
        passes=shares["passes"],
        per_operation=shares["per_operation"],
        link=found["link"],
        host_link=found["host_link"],
        source=found["source"],
    )


def cluster(
    link: str, network: str, gpus_per_node: int, host_link: str = "pcie4", host_memory: float | None = None
) -> Cluster:
    """Links of the table.

    Args:
        link, network, host_link: names: between devices of a node, between nodes, between a device and its machine.
        gpus_per_node: devices of one machine.
        host_memory: of one machine, in GiB; the table's assumption where not given.

    Raises:
        UserError: no such link or network, or a node without devices.
    """
    if gpus_per_node < 1:
        raise UserError(f"--gpus-per-node must be at least 1, got {gpus_per_node}")
    shares, host = assumed(), _table()["host"]
    gib = host["memory_gib"] if host_memory is None else host_memory
    return Cluster(
        gpus_per_node=gpus_per_node,
        link=shares["links"] * _entry("links", "link", link)["rate"],
        network=shares["links"] * _entry("networks", "network", network)["rate"],
        link_delay=shares["link_delay"],
        network_delay=shares["network_delay"],
        host=Host(
            memory=int(host["usable"] * gib * GIB),
            pcie=shares["links"] * _entry("links", "link", host_link)["rate"],
            bandwidth=host["bandwidth"],
        ),
    )


def _entry(section: str, what: str, name: str) -> dict[str, Any]:
    known = _table()[section]
    if name not in known:
        raise UserError(f"--{what}: no {what} {name!r}; there are {', '.join(known)}")
    found: dict[str, Any] = known[name]
    return found
