"""Whatever happens to the processes of a run, every (dataset, repetition, index) counts exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from training_resizing import STARTS
from training_spawn import HERE


def test_a_real_run_that_is_stopped_killed_and_resized_draws_everything_once(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "training_resizing.py"), str(tmp_path)]
    played = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=tmp_path)
    assert played.returncode == 0, (played.stdout + played.stderr)[-6000:]
    kept: dict[int, list[tuple[int, ...]]] = {}
    made_again = 0
    for number, (world, _, _) in enumerate(STARTS):
        ranks = [read(tmp_path / f"drawn_{number}_{rank}.jsonl") for rank in range(world)]
        first = min(ranks[0])
        made_again += sum(step >= first for step in kept)
        kept = {step: rows for step, rows in kept.items() if step < first}  # what came after a checkpoint is lost
        for step in set(ranks[0]).intersection(*ranks):
            kept[step] = [row for rank in ranks for row in rank[step]]
    assert made_again > 0, "the kill lost nothing, so it was not after a checkpoint"
    assert sorted(kept) == list(range(len(kept)))
    seen = Counter(row for rows in kept.values() for row in rows)
    whole = [tuple(row) for row in json.loads((tmp_path / "whole.json").read_text())]
    assert max(repetition for _, _, repetition, _ in whole) > 0
    assert seen == Counter(whole)


def read(file: Path) -> dict[int, list[tuple[int, ...]]]:
    """Rows by step."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {step: [tuple(row) for row in rows] for step, rows in lines}
