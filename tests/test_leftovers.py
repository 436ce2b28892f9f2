"""The check at the end of every session of tests finds what it should."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leftovers import files_left, processes_left


def test_a_process_whose_parent_is_gone_is_found() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number = int(done.stdout)
    try:
        assert any(f"process {number} " in text for text in processes_left())
    finally:
        os.kill(number, 9)
    end = time.monotonic() + 10
    while any(f"process {number} " in text for text in processes_left()):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm")
def test_shared_memory_that_nobody_has_is_found() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    file = Path("/dev/shm") / f"torch_{done.stdout.strip()}_1_0"
    file.write_bytes(b"x")
    try:
        assert str(file) in files_left()
    finally:
        file.unlink()
    assert str(file) not in files_left()
