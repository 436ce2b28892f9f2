"""What message passing is computed by and where graphs are built, chosen once when a network is built."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jmp_kernels import BackendName, Messages, messages_for

from jmp_ds.errors import UserError
from jmp_ds.graphs.unbuilt import BuiltOn

#: Where graphs are to be built; see `graphs_on`.
Graphs = Literal["auto", "host", "device"]


def backend(name: BackendName, device: torch.device | str) -> Messages:
    """The backend of message passing for a device, chosen once and told in the log.

    Args:
        name: `auto` takes Triton on a GPU it is installed for, PyTorch elsewhere.
        device: where the model will run.

    Raises:
        UserError: Triton is asked for where it cannot run.
    """
    try:
        return messages_for(name, device)
    except ValueError as error:
        raise UserError(f"kernels: {error}") from None


def graphs_on(choice: Graphs, device: torch.device | str) -> BuiltOn:
    """Where the graphs of batches for a device are built; they are the same edge for edge.

    Args:
        choice: `host`, `device`, or `auto`: on the device if that is a GPU, on the host otherwise.
        device: where the model runs.

    Raises:
        UserError: another word.
    """
    if choice not in get_args(Graphs):
        raise UserError(f"graphs: must be one of {', '.join(get_args(Graphs))}, got {choice!r}")
    if choice != "auto":
        return choice
    return "device" if torch.device(device).type == "cuda" else "host"
