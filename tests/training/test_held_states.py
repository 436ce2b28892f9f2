"""What processes hold and send under DeepSpeed against what planning predicts: every tensor is counted."""

from __future__ import annotations

import pytest
from training_spawn import run


@pytest.mark.parametrize("world", [1, 2])
def test_processes_hold_and_send_what_is_predicted(world: int) -> None:
    """At rest, in the backward pass, and messages of a step; stages 0 to 2."""
    run(world, "training_states:count", {}, timeout=120.0)
