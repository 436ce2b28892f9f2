"""A sample of the fault campaign (fault_campaign.py); the whole is run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from training_spawn import HERE


def test_killed_runs_end_like_undisturbed_ones(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "fault_campaign.py"), "--kills", "1", "--damaged", "2", "--sample"]
    command += ["--stores", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert done.stdout.startswith("8 kills ("), done.stdout
    assert " 0 problems" in done.stdout
    assert "6 damaged files of a data store" in done.stdout
    assert "; 0 did anything else" in done.stdout
