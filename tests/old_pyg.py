"""Records as PyTorch Geometric 1.x pickled them: all fields in the object's own dictionary, absent ones as None.

The class here stands in while pickling; the name in the bytes is then replaced by the published one (protocol 2 writes
names as lines of text, so their length does not matter).
"""

from __future__ import annotations

import pickle
from typing import Any

_NEVER_SET = ("x", "edge_index", "edge_attr", "y", "pos", "norm", "face")


class Data:
    """Keeps its fields as the old class did."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(dict.fromkeys(_NEVER_SET))
        self.__dict__.update(fields)


def old_record(protocol: int = 2, **fields: Any) -> bytes:
    """Bytes of one record in the old layout."""
    data = pickle.dumps(Data(**fields), protocol=protocol)
    name = f"c{Data.__module__}\nData\n".encode()
    assert name in data
    return data.replace(name, b"ctorch_geometric.data.data\nData\n")
