"""What a program says about itself."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def told_by(command: Sequence[str], seconds: float = 30.0) -> str | None:
    """Standard output of a program; None where it cannot be started or does not answer, as with a hanging driver.

    Args:
        command: program and arguments.
        seconds: how long it is waited for.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout
