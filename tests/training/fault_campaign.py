"""Kills a run again and again, in every phase, and holds what comes out to the bit against an undisturbed one.

    python tests/training/fault_campaign.py --document docs/reliability.md    # the whole, figures into the document
    python tests/training/fault_campaign.py --kills 1 --sample    # two kinds of runs only

Phases: `step` (an optimizer step), `save` (a checkpoint's files), `commit` (from the last file on disk to the removal of
old checkpoints), `load` (from the search for checkpoints to restored values). A kill comes at a random file operation
inside the phase, or after a random time in it. Then files of checkpoints and of data stores are damaged (the latter:
store_damage.py). Everything is drawn from `--seed`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import store_damage  # noqa: E402
from training_fork import fork, wait, warm_up  # noqa: E402

PHASES = ("step", "save", "commit", "load")
#: Seconds within which all processes are gone after one was killed.
GONE = 30.0
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "shutil.rmtree"}


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        rank: who is hit.
        phase, occurrence: when: the so-manieth time that it is in this phase.
        operation: at which file operation in it; or, if None,
        delay: after how many seconds in it.
        number: the signal.
    """

    rank: int
    phase: str
    occurrence: int
    operation: int | None
    delay: float
    number: int


class Trigger:
    """Carries out a kill in this process; at the phase's end at the latest."""

    def __init__(self, kill: Kill, told: Path) -> None:
        self.kill, self.told = kill, told
        self.entered = self.operations = 0
        self.active = self.fired = False
        self.lock = threading.Lock()
        sys.addaudithook(self._operation)

    def fire(self) -> None:
        with self.lock:
            if self.fired or not self.active:
                return
            self.fired, self.active = True, False
            self.told.write_text(self.kill.phase)
            os.kill(os.getpid(), self.kill.number)

    def _operation(self, event: str, arguments: Any) -> None:
        if self.active and self.kill.operation is not None and event in _OPERATIONS:
            self.operations += 1
            if self.operations > self.kill.operation:
                self.fire()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if name != self.kill.phase or self.fired:
            yield
            return
        self.entered += 1
        if self.entered != self.kill.occurrence:
            yield
            return
        self.active = True
        if self.kill.operation is None:
            timer = threading.Timer(self.kill.delay, self.fire)
            timer.daemon = True
            timer.start()
        yield
        self.fire()


def attempt(folder: Path, stage: int, background: bool, kill: Kill | None) -> None:
    """One start of a run, in each of its processes."""
    import torch
    from training_loops import everything, make_loop

    from jmp_ds.training.engine import start_processes

    processes = start_processes("cpu", 1)
    loop = make_loop(processes, folder, stage, keep_best=True, background=background)
    if kill is not None and kill.rank == processes.rank:
        trigger = Trigger(kill, folder / "fired.txt")
        engine, checkpoints = loop.engine, loop.checkpoints
        engine.step = inside(trigger, "step", engine.step)
        checkpoints._write = inside(trigger, "save", checkpoints._write)
        checkpoints._raise_together = inside(trigger, "commit", checkpoints._raise_together)
        checkpoints._commit = inside(trigger, "commit", checkpoints._commit)
        checkpoints.load_newest = inside(trigger, "load", checkpoints.load_newest)
    note(processes.first, folder, loop)
    outcome = loop.run()
    if outcome.status == "finished":
        torch.save(everything(loop), folder / f"everything_{processes.rank}.pt")


def inside(trigger: Trigger, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, known to the trigger as a phase."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        with trigger.phase(phase):
            return function(*arguments, **named)

    return wrapped


def note(first: bool, folder: Path, loop: Any) -> None:
    """Let the first process write down which checkpoint it resumed and which ones it has committed."""
    if not first:
        return
    commit, restore = loop.checkpoints._commit, loop._restore

    def committed(pending: Any, files: Any) -> None:
        commit(pending, files)
        with (folder / "committed.txt").open("a") as file:
            file.write(f"{pending.step}\n")

    def restored(loaded: Any) -> None:
        (folder / "resumed.txt").write_text(loaded.path.name)
        restore(loaded)

    loop.checkpoints._commit, loop._restore = committed, restored


@dataclass
class Findings:
    """What the campaign has seen."""

    kills: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    runs: int = 0
    starts: int = 0
    damage: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    stores: store_damage.Damages = field(default_factory=store_damage.Damages)


@dataclass(frozen=True)
class Cell:
    """Which run is killed."""

    world: int
    stage: int
    background: bool

    def __str__(self) -> str:
        return f"{self.world} process{'es' * (self.world > 1)}, ZeRO {self.stage}{', background' * self.background}"


def newest(folder: Path) -> Path | None:
    """The newest committed checkpoint, judged by names alone."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("step_*"), reverse=True):
        if (match := re.fullmatch(r"step_(\d+)(\.old)?", path.name)) and (path / "manifest.json").is_file():
            found[int(match.group(1))] = path
    return found[max(found)] if found else None


def start(cell: Cell, folder: Path, kill: Kill | None, findings: Findings) -> tuple[list[int], float]:
    """Start the run's processes and wait for their end; exit codes, and seconds from the first death to the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fired.txt").unlink(missing_ok=True)
    findings.starts += 1
    output = folder / f"start_{len(list(folder.glob('start_*_0.txt')))}"
    codes, times = wait(fork(cell.world, lambda: attempt(folder, cell.stage, cell.background, kill), output), 120.0)
    return codes, max(times) - min(times)


def outputs(folder: Path) -> str:
    """What the processes of the last start said."""
    last = max((p for p in folder.glob("start_*_0.txt")), key=lambda p: p.stat().st_mtime)
    return "\n".join(p.read_text()[-1500:] for p in sorted(folder.glob(last.name.replace("_0.txt", "_*.txt"))))


def check_kill(cell: Cell, folder: Path, kill: Kill, before: Path | None, codes: list[int], findings: Findings) -> bool:
    """Judge what a start that was to be killed left; whether the kill took place."""
    before_step = int(before.with_suffix("").name[5:]) if before else None
    resumed = (folder / "resumed.txt").read_text() if (folder / "resumed.txt").is_file() else None
    fired = (folder / "fired.txt").is_file()
    say = lambda text: findings.problems.append(f"{cell}, {kill}: {text}\n{outputs(folder)}")  # noqa: E731
    if (
        kill.phase != "load"
        and resumed is not None
        and before is not None
        and int(resumed[5:].split(".")[0]) != before_step
    ):
        say(f"resumed {resumed} instead of {before.name}")
    if not fired:
        if any(codes):
            say(f"ended with {codes} without having been killed")
        return False
    if kill.number == signal.SIGKILL and codes[kill.rank] != -signal.SIGKILL:
        say(f"the kill did not kill: {codes}")
    if kill.number == signal.SIGTERM and any(codes):
        say(f"a request to stop ended with {codes}")
    committed = folder / "committed.txt"
    steps = [int(line) for line in committed.read_text().split()] if committed.is_file() else []
    left = newest(folder)
    if steps and (left is None or int(left.with_suffix("").name[5:]) < steps[-1]):
        say(f"checkpoint {steps[-1]} was committed, the newest is {left}")
    return True


def same(a: Path, b: Path) -> bool:
    """Whether two files of `everything` hold the same bits."""
    import torch
    from test_loop import same as equal

    return equal(torch.load(a, weights_only=False), torch.load(b, weights_only=False))


def draw(rng: random.Random, cell: Cell, phase: str) -> Kill:
    """A random kill in a phase."""
    number = signal.SIGKILL if rng.random() < 0.75 else signal.SIGTERM
    by_time = phase == "step" or rng.random() < 0.4
    longest = {"step": 0.01, "save": 0.01, "commit": 0.005, "load": 0.02}[phase]
    most = {"step": 8, "save": 2, "commit": 6, "load": 1}[phase]
    operation = None if by_time else rng.randrange(12)
    return Kill(rng.randrange(cell.world), phase, rng.randint(1, most), operation, rng.uniform(0, longest), number)


def kill_cell(cell: Cell, per_phase: int, rng: random.Random, folder: Path, findings: Findings) -> None:
    """So many kills in each phase, in runs of this cell; each run is killed until it finishes all the same."""
    straight = folder / "straight"
    codes, _ = start(cell, straight, None, findings)
    if any(codes):
        findings.problems.append(f"{cell}: the undisturbed run ended with {codes}\n{outputs(straight)}")
        return
    wanted = [phase for phase in PHASES for _ in range(per_phase)]
    rng.shuffle(wanted)
    wanted.sort(key=lambda phase: phase == "load")  # there is nothing to load at first; python's sort is stable
    number = 0
    while wanted or number == 0:
        run = folder / f"run_{number}"
        number += 1
        finish_run(cell, run, wanted, rng, findings)
        for rank in range(cell.world):
            if not same(run / f"everything_{rank}.pt", straight / f"everything_{rank}.pt"):
                findings.problems.append(f"{cell}: {run.name} did not end like the undisturbed run")
        findings.runs += 1
        if number > 10 + 4 * per_phase:
            findings.problems.append(f"{cell}: kills did not take place: {wanted}")
            return


def finish_run(cell: Cell, run: Path, wanted: list[str], rng: random.Random, findings: Findings) -> None:
    """Start a run until it is finished, killing it as long as kills are wanted (at most ten times)."""
    for turn in range(12):
        before = newest(run)
        phase = next((p for p in wanted if p != "load" or before is not None), None) if turn < 10 else None
        kill = draw(rng, cell, phase) if phase is not None else None
        codes, spread = start(cell, run, kill, findings)
        if kill is not None and check_kill(cell, run, kill, before, codes, findings):
            wanted.remove(kill.phase)
            findings.kills[f"{signal.Signals(kill.number).name} in {kill.phase}"] += 1
            findings.kills[str(cell)] += 1
            findings.slowest = max(findings.slowest, spread)
            if spread > GONE:
                findings.problems.append(f"{cell}, {kill}: the others left after {spread:.0f} s")
        if all((run / f"everything_{rank}.pt").is_file() for rank in range(cell.world)):
            return
        if kill is None and any(codes):
            findings.problems.append(f"{cell}: a start without a kill ended with {codes}\n{outputs(run)}")
            raise SystemExit(report(findings))


def spoil(file: Path, how: str, rng: random.Random) -> None:
    """Damage one file of a checkpoint."""
    content = file.read_bytes()
    position = rng.randrange(len(content))
    if how == "truncated":
        file.write_bytes(content[:position])
    elif how == "bit flipped":
        file.write_bytes(
            content[:position] + bytes([content[position] ^ 1 << rng.randrange(8)]) + content[position + 1 :]
        )
    elif how == "zeroed":
        file.write_bytes(content[:position] + bytes(len(content) - position))
    else:
        file.unlink()


def damage_cell(cell: Cell, trials: int, rng: random.Random, folder: Path, findings: Findings) -> None:
    """Files of the newest checkpoints damaged: the run goes on from the one before and ends like an undisturbed one."""
    straight = folder / "straight"
    middle = folder / "middle"
    if not straight.is_dir():
        start(cell, straight, None, findings)
    while not (middle / "fired.txt").is_file():  # stopped in the middle, three checkpoints and the best there
        shutil.rmtree(middle, ignore_errors=True)
        start(cell, middle, Kill(0, "step", 10, None, 0.0, signal.SIGTERM), findings)
    checkpoints = sorted(p.name for p in (middle / "checkpoints").iterdir())
    for trial in range(trials):
        run = folder / f"damaged_{trial}"
        shutil.copytree(middle, run)
        for name in ("fired.txt", "resumed.txt"):
            (run / name).unlink(missing_ok=True)
        spoilt = rng.randint(1, len(checkpoints) - 1) if trial else len(checkpoints)
        by_age = sorted((run / "checkpoints").iterdir(), key=lambda p: -int(p.name[5:]))
        for path in by_age[:spoilt]:
            how = rng.choice(["truncated", "bit flipped", "bit flipped", "zeroed", "removed"])
            spoil(rng.choice(sorted(p for p in path.iterdir() if p.stat().st_size)), how, rng)
            findings.damage[how] += 1
        codes, _ = start(cell, run, None, findings)
        hopeless = spoilt == len(by_age)
        said = outputs(run)
        if hopeless and not (all(codes) and "is whole; remove them" in said):
            findings.problems.append(f"{cell}: all checkpoints damaged: {codes}\n{said}")
        if not hopeless:
            if any(codes) or (run / "resumed.txt").read_text() != by_age[spoilt].name:
                findings.problems.append(f"{cell}: {spoilt} damaged checkpoints: {codes}\n{said}")
            elif not all(same(run / f"everything_{r}.pt", straight / f"everything_{r}.pt") for r in range(cell.world)):
                findings.problems.append(f"{cell}: ended otherwise after damaged checkpoints")
        shutil.rmtree(run)


def report(findings: Findings) -> str:
    """The figures in words."""
    phases = Counter()
    signals = Counter()
    for key, count in findings.kills.items():
        if " in " in key:
            phases[key.split(" in ")[1]] += count
            signals[key.split(" in ")[0]] += count
    total = sum(phases.values())
    cells = {key: count for key, count in findings.kills.items() if " in " not in key}
    damage = ", ".join(f"{n} {how}" for how, n in sorted(findings.damage.items()))
    lines = [
        f"{total} kills ({', '.join(f'{n} {s}' for s, n in sorted(signals.items()))}) in {findings.starts} starts of "
        f"{findings.runs} runs; {len(findings.problems)} problems. "
        f"After a kill the last process was gone {findings.slowest:.1f} s after the first at the latest.",
        "",
        f"{findings.damage.total()} damaged checkpoint files ({damage}): "
        "each run went on from the newest whole checkpoint to the same weights, or refused where none was whole.",
        "",
        f"| phase | {' | '.join(PHASES)} |",
        f"|---|{'---|' * len(PHASES)}",
        *(
            f"| {name} | {' | '.join(str(findings.kills[f'{name} in {p}']) for p in PHASES)} |"
            for name in ("SIGKILL", "SIGTERM")
        ),
        "",
        "| run | kills |",
        "|---|---|",
        *(f"| {cell} | {count} |" for cell, count in sorted(cells.items())),
        *(["", store_damage.table(findings.stores)] if findings.stores.ends else []),
    ]
    return "\n".join([*lines, *(f"\nPROBLEM {text}" for text in findings.problems)])


def campaign(per_phase: int, damaged: int, stores: int, seed: int, folder: Path, cells: list[Cell]) -> Findings:
    """So many kills per cell and phase, damaged checkpoints per cell, and damaged stores."""
    warm_up()
    for name in store_damage.LIBRARIES:
        importlib.import_module(name)
    findings = Findings()
    for number, cell in enumerate(cells):
        began = time.monotonic()
        kill_cell(cell, per_phase, random.Random(f"{seed}/{cell}"), folder / f"cell_{number}", findings)
        damage_cell(cell, damaged, random.Random(f"{seed}/{cell}"), folder / f"cell_{number}", findings)
        shutil.rmtree(folder / f"cell_{number}") if not findings.problems else None
        sys.stderr.write(f"{cell}: {findings.kills[str(cell)]} kills, {time.monotonic() - began:.0f} s\n")
    if stores:
        findings.stores = store_damage.trials(stores, seed, folder / "stores")
        findings.problems += findings.stores.problems
    return findings


def all_cells(stages: list[int]) -> list[Cell]:
    """One and two processes at every stage, and both ways of writing."""
    return [Cell(world, stage, background) for world, stage, background in product((1, 2), stages, (False, True))]


def main() -> int:
    """Run it; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="in each phase of each cell")
    parser.add_argument("--damaged", type=int, default=4, help="runs of each cell with damaged checkpoints")
    parser.add_argument("--stores", type=int, default=60, help="runs with a damaged data store")
    parser.add_argument("--no-kills", action="store_true", help="damaged stores only")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="two cells only")
    parser.add_argument("--document", type=Path, help="put the figures between its marks")
    arguments = parser.parse_args()
    cells = all_cells(arguments.stages)
    cells = [Cell(1, arguments.stages[0], True), Cell(2, arguments.stages[-1], False)] if arguments.sample else cells
    cells = [] if arguments.no_kills else cells
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    findings = campaign(arguments.kills, arguments.damaged, arguments.stores, arguments.seed, folder, cells)
    text = report(findings)
    sys.stdout.write(text + "\n")
    if findings.problems:
        sys.stdout.write(f"everything is left in {folder}\n")
        return 1
    shutil.rmtree(folder)
    if arguments.document is not None:
        begin, end = "<!-- campaign -->\n", "<!-- /campaign -->"
        before, _, rest = arguments.document.read_text().partition(begin)
        arguments.document.write_text(before + begin + text + "\n" + end + rest.partition(end)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
