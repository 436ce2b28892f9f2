"""Damages files of a data store before and during runs of `jmp-ds pretrain`, and judges how the runs end.

Part of the fault campaign (fault_campaign.py). A run must end with the weights of an undisturbed one, where the damage
meets nothing that it reads; or stop by itself, naming the file and what to do, without a traceback.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from training_fork import fork, wait  # noqa: E402

#: Derived from the others, or nothing that a run reads after it began.
AT_START = ("complete.json", "metadata.json", "natoms.npy", "groups.npy")
HOW = ("bit flipped", "bit flipped", "bit flipped", "page zeroed", "truncated", "truncated", "removed")
#: What a parent imports before it forks.
LIBRARIES = ("jmp_ds.cli.app", "jmp_ds.config.checks", "jmp_ds.pretrain", "small_stores")
#: What every message must say besides the file.
ADVICE = "again"


NEXT = "killed while it read, and named at the next start"


@dataclass
class Damages:
    """What was seen: numbers by kind of damage and of end, and whatever should not have been."""

    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Damage:
    """One damage.

    Attributes:
        world, workers: of the run.
        file: of the store.
        how: see `HOW`.
        early: before the run begins, instead of after its first step.
    """

    world: int
    workers: int
    file: str
    how: str
    early: bool


def draw(rng: random.Random) -> Damage:
    """A random damage; most are to the shard during the run."""
    early = rng.random() < 0.4
    file = rng.choice(AT_START) if early and rng.random() < 0.4 else "shard-00000.lmdb"
    how = rng.choice(HOW)
    if not early and how == "removed":
        how = "truncated"  # what is open stays readable, and may be read
    return Damage(rng.choice((1, 1, 2)), rng.choice((0, 1)), file, how, early)


def spoil(path: Path, how: str, rng: random.Random) -> None:
    """Damage a file in place, so that who has it open or mapped sees it."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(rng.randrange(size) // 4096 * 4096 if size > 4096 else rng.randrange(size))
        elif how == "page zeroed":
            start = rng.randrange(size) // 4096 * 4096
            file.seek(start)
            file.write(bytes(min(4096, size - start)))
        else:
            file.seek(rng.randrange(size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))
    if how == "removed":
        path.unlink()


def train(file: Path, workers: int, slowly: float = 0.0) -> None:
    """`jmp-ds pretrain` in this process, which it ends."""
    from jmp_ds.cli.app import app
    from jmp_ds.training.loop import Loop

    window = Loop._window

    def slow(*arguments: object) -> str | None:
        time.sleep(slowly)
        return window(*arguments)

    Loop._window = slow  # time for the damage to come
    code = 0
    try:
        app(["pretrain", str(file), f"sampling.workers={workers}"])
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def prepare(folder: Path) -> Path:
    """A run file over two stores, one of them with several pages of records, indexed and counted by a first run."""
    from small_stores import write_pretrain, write_store

    file = write_pretrain(folder, train={"epochs": 4}, validate={"every": 100}, sampling={"batch": {"edges": 400}})
    shutil.rmtree(folder / "molecules")
    write_store(folder / "molecules", seed=1, structures=60)
    return file


def weights(run: Path) -> str:
    """Digest of what a run has learned."""
    return hashlib.sha256((run / "final" / "model.safetensors").read_bytes()).hexdigest()


def start(file: Path, world: int, workers: int, slowly: float = 0.0) -> list[int]:
    """Start the processes of a run."""
    return fork(world, lambda: train(file, workers, slowly), file.parent / "said")


def said(folder: Path, world: int) -> list[str]:
    """What each process said."""
    return [(folder / f"said_{rank}.txt").read_text() for rank in range(world)]


def trial(damage: Damage, original: Path, folder: Path, rng: random.Random, straight: str, found: Damages) -> None:
    """One run with one damage, judged."""
    shutil.copytree(original, folder)
    file, run, shard = folder / "pretrain.yaml", folder / "run", folder / "molecules" / damage.file
    file.write_text(file.read_text().replace(str(original), str(folder)))
    if damage.early:
        spoil(shard, damage.how, rng)
        started = start(file, damage.world, damage.workers)
    else:
        started = start(file, damage.world, damage.workers, 0.15)
        end, log = time.monotonic() + 100, run / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size) and time.monotonic() < end:
            time.sleep(0.01)
        spoil(shard, damage.how, rng)
    codes, _ = wait(started, 120.0)
    texts = said(folder, damage.world)
    words = [" ".join(text.split()) for text in texts]
    when = "before the run" if damage.early else "during the run"
    how = damage.how if damage.file.endswith(".lmdb") else f"{damage.how}, other files"
    told = [code == 2 and damage.file in w and ADVICE in w for code, w in zip(codes, words, strict=True)]
    cut = damage.how == "truncated" and not damage.early
    if (
        cut
        and not any(told)
        and any(code == -7 or "Bus error" in text for code, text in zip(codes, texts, strict=True))
    ):
        end_ = again(damage, file)  # in the very moment in which a batch was read
    elif not any(codes):
        end_ = "no effect" if weights(run) == straight else "other weights"
    elif any("Traceback" in text for text in texts) or any(code < 0 for code in codes):
        end_ = "not a message"
    elif not any(told):
        end_ = "message does not say what and where"
    else:
        end_ = "message" if all(codes) else "some processes went on"
    found.ends[how, when, end_] += 1
    if end_ not in ("no effect", "message", NEXT):
        found.problems.append(f"{damage}: {end_}, exit codes {codes}\n" + "\n".join(t[-2500:] for t in texts))
    shutil.rmtree(folder)


def again(damage: Damage, file: Path) -> str:
    """How another start of a run ends that was killed (SIGBUS) by reading from a file while that was cut short."""
    codes, _ = wait(start(file, damage.world, damage.workers), 120.0)
    words = [" ".join(text.split()) for text in said(file.parent, damage.world)]
    fine = any(code == 2 and damage.file in w for code, w in zip(codes, words, strict=True))
    return NEXT if fine else "killed, and not named at the next start"


def trials(number: int, seed: int, folder: Path) -> Damages:
    """So many damages."""
    found, original = Damages(), folder / "stores"
    original.mkdir(parents=True)
    straight = {}
    for world in (1, 2):
        pattern = folder / f"straight_{world}"
        pattern.mkdir()
        file = prepare(pattern)
        codes, _ = wait(start(file, world, 0), 120.0)
        if any(codes):
            found.problems.append(f"the undisturbed run of {world} ended with {codes}: {said(pattern, world)}")
            return found
        straight[world] = weights(pattern / "run")
    prepare(original)
    for count in range(number):
        rng = random.Random(f"{seed}/store/{count}")
        damage = draw(rng)
        trial(damage, original, folder / f"trial_{count}", rng, straight[damage.world], found)
    return found


def table(found: Damages) -> str:
    """The figures in words and as a table."""
    by_end = Counter[str]()
    for (_, _, end), count in found.ends.items():
        by_end[end] += count
    lines = [
        f"{found.ends.total()} damaged files of a data store, each in a run of its own (1 or 2 processes, 0 or 1 "
        f"data workers): {by_end['message']} runs stopped with a message that names the file and what to do, "
        f"{by_end['no effect']} ended with the weights of an undisturbed run; {by_end[NEXT]} were killed (SIGBUS) by "
        f"reading while the file was cut short, and named it at the next start; {len(found.problems)} did anything else.",
        "",
        "| store files | when | stopped with a message | no effect on the weights |",
        "|---|---|---|---|",
    ]
    for how, when in sorted({key[:2] for key in found.ends}):
        lines.append(f"| {how} | {when} | {found.ends[how, when, 'message']} | {found.ends[how, when, 'no effect']} |")
    return "\n".join(lines)
