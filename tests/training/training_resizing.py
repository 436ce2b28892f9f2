"""A run of `pretrain` on a real mixture that goes on with other numbers of processes; what each step drew is judged by
test_resizing.py.

`python training_resizing.py FOLDER` plays it: 1, 2, 3, 1 processes; the second start is killed after its checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from training_fork import fork, wait, warm_up  # noqa: E402

#: (processes, step at which this start ends, how).
STARTS: tuple[tuple[int, int | None, str], ...] = ((1, 7, "stop"), (2, 12, "kill"), (3, 15, "stop"), (1, None, ""))


def attempt(file: Path, number: int) -> None:
    """One process of one start; a line per step that was made, in FOLDER/drawn_START_RANK.jsonl."""
    from drawn import drawn, whole_run

    from jmp_ds.config import load_pretrain
    from jmp_ds.config.checks import check_pretrain
    from jmp_ds.data.loading import TrainLoader
    from jmp_ds.pretrain import run_pretrain
    from jmp_ds.training.loop import Loop

    _, last, end = STARTS[number]
    loaders: list[TrainLoader] = []
    iterate, window = TrainLoader.__iter__, Loop._window

    def remember(loader: TrainLoader) -> Iterator[Any]:
        loaders.append(loader)
        return iterate(loader)

    def noted(loop: Loop, step: Any, *others: Any) -> str | None:
        rank, before = loop._processes.rank, loop.position.step
        if before == last and end == "stop":
            loop.stop.ask("enough")
        if before == last and end == "kill" and rank == loop._processes.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        stopped = window(loop, step, *others)
        if loop.position.step > before:
            with (file.parent / f"drawn_{number}_{rank}.jsonl").open("a") as lines:
                lines.write(json.dumps([before, drawn(loaders[-1], step)]) + "\n")
        return stopped

    TrainLoader.__iter__, Loop._window = remember, noted
    resolved = load_pretrain(file, [])
    run_pretrain(resolved, check_pretrain(resolved))
    (file.parent / "whole.json").write_text(json.dumps(sorted(whole_run(loaders[-1]))))


def main(folder: Path) -> int:
    """Play all starts; 0 if each ended as it should."""
    warm_up()
    from small_stores import write_pretrain, write_store

    import jmp_ds.config.checks
    import jmp_ds.pretrain  # noqa: F401

    file = write_pretrain(
        folder,
        sampling={"temperature": 2.0, "batch": {"structures": 4}},
        train={"epochs": 2},
        checkpoint={"every": 0.4},
        validate={"every": 100},
    )
    write_store(folder / "few", seed=1, structures=9)  # of which an epoch draws some more often than others
    file.write_text(file.read_text().replace(f"store: {folder / 'molecules'}", f"store: {folder / 'few'}"))
    for number, (world, _, end) in enumerate(STARTS):
        output = folder / f"said_{number}"
        codes, _ = wait(fork(world, lambda number=number: attempt(file, number), output), 200.0)
        if any(codes) != (end == "kill"):
            sys.stdout.write("\n".join(f"{codes}: {p.read_text()[-3000:]}" for p in sorted(folder.glob("said_*"))))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
