"""Checkpoints that exist whole or not at all, and are read by all processes or by none.

A folder `step_N` is written as `step_N.tmp`: DeepSpeed's files, and one file per process with what only that process
knows (random states, its shard of the averaged weights). Every process flushes its files and reports their hashes; the
first writes them into manifest.json and renames the folder, which is the commit; then it points `latest` there and
removes old ones. DeepSpeed's own `latest` is not used: it can name a checkpoint that another process has not finished
(deepspeed.md section 6).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jmp_ds.errors import UserError
from jmp_ds.files import sha256, to_disk, write_json, write_text
from jmp_ds.training.engine import Engine
from jmp_ds.training.processes import Processes

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gave back, besides what went into the engine.

    Attributes:
        path: its folder.
        shared: the values that were the same for all processes.
        own: this process's values.
    """

    path: Path
    shared: dict[str, Any]
    own: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`; `latest` is beside it.
        engine: what is saved and restored.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, engine: Engine, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self._engine = engine
        self._processes: Processes = engine.processes

    def save(self, step: int, shared: dict[str, Any], own: dict[str, Any]) -> Path:
        """Write a checkpoint; collective.

        Args:
            step: number in its name.
            shared: JSON values, the first process's count.
            own: tensors, numbers, texts and nests of them, of this process.

        Returns:
            Its folder.

        Raises:
            OSError: it could not be written, for example for lack of space; older ones are untouched.
        """
        final = self.folder / f"step_{step}"
        aside = self.folder / f"step_{step}.tmp"
        if self._processes.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob("step_*"):
                if not (rest / MANIFEST).is_file():  # of a process that was ended while writing or deleting
                    shutil.rmtree(rest)
        self._processes.barrier()
        problem, records = "", {}
        try:
            self._engine.save(self.folder, aside.name)
            torch.save(own, aside / _own_name(self._processes.rank))
            records = self._finish_files(aside)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as RuntimeError
            problem = f"process {self._processes.rank}: {error}"
        if self._processes.first:
            for script in self.folder.glob("zero_to_*.py"):
                script.unlink()  # DeepSpeed's converters, which know nothing of manifests
        self._raise_together(problem, aside)
        files = {name: record for part in self._processes.gather(records) for name, record in part.items()}
        try:
            if self._processes.first:
                self._commit(aside, final, step, shared, files)
        except OSError as error:
            problem = str(error)
        self._raise_together(problem, aside)
        return final

    def _raise_together(self, problem: str, aside: Path) -> None:
        """If one process could not write, all raise."""
        problems = [p for p in self._processes.gather(problem) if p]
        if problems:
            if self._processes.first:
                shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"checkpoint {aside.stem} could not be written: {'; '.join(problems)}")

    def _finish_files(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Flush this process's files; their sizes and hashes. The first process also has those that belong to none."""
        records = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            owner = _owner(path.name)
            if owner == self._processes.rank or (owner is None and self._processes.first):
                to_disk(path)
                records[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": sha256(path)}
        return records

    def _commit(
        self, aside: Path, final: Path, step: int, shared: dict[str, Any], files: dict[str, dict[str, Any]]
    ) -> None:
        """Make the written folder a checkpoint, then forget old ones."""
        manifest = {
            "format": FORMAT,
            "step": step,
            "world": self._processes.world,
            "stage": self._engine.stage,
            "shared": shared,
            "files": files,
        }
        write_json(aside / MANIFEST, manifest)
        if final.exists():  # of an earlier attempt at this step
            _remove(final)
        aside.rename(final)
        to_disk(self.folder)
        write_text(self.folder.parent / "latest", f"checkpoints/{final.name}\n")
        numbers = {path: int(path.name.removeprefix("step_")) for path in self._candidates()}
        # Newer ones were not whole when this run went on from an older one; they must not count as kept.
        abandoned = [path for path, number in numbers.items() if number > step]
        for path in abandoned + [path for path in numbers if path not in abandoned][self.keep :]:
            _remove(path)

    def _candidates(self) -> list[Path]:
        """Folders that look like checkpoints, newest first."""
        found = [(int(m.group(1)), p) for p in self.folder.glob("step_*") if (m := _NAME.fullmatch(p.name))]
        return [p for _, p in sorted(found, reverse=True) if (p / MANIFEST).is_file()]

    def load_newest(self) -> Loaded | None:
        """Restore the newest checkpoint that is whole on every process; collective. None if there never was one.

        Raises:
            UserError: it was written by another number of processes or another ZeRO stage, or none is whole.
        """
        names = self._processes.from_first([p.name for p in self._candidates()])
        for name in names:
            path = self.folder / name
            problem = self._problem(path)
            if self._processes.all_agree(problem is None):
                return self._load(path)
            told = [p for p in self._processes.gather(problem) if p]
            if self._processes.first:
                _log.warning("checkpoint %s is not whole (%s); trying the one before", path, "; ".join(told))
        if names:
            raise UserError(f"none of the checkpoints in {self.folder} is whole; remove them to start anew")
        return None

    def _problem(self, path: Path) -> str | None:
        """Why this process cannot use a checkpoint, or None. Sizes of all files are compared, hashes of those it reads."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            for name, record in manifest["files"].items():
                file = path / name
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != record["size"]:
                    return f"{name} has {file.stat().st_size} bytes instead of {record['size']}"
                if _owner(name) in (None, self._processes.rank) and sha256(file) != record["sha256"]:
                    return f"the content of {name} has changed"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} cannot be read: {error}"
        return None

    def _load(self, path: Path) -> Loaded:
        """Restore a checkpoint known to be whole."""
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: checkpoint format {manifest['format']}, this version reads {FORMAT}")
        written = (manifest["world"], manifest["stage"])
        if written != (self._processes.world, self._engine.stage):
            raise UserError(
                f"{path} was written by {written[0]} processes with ZeRO stage {written[1]}, this run has "
                f"{self._processes.world} with stage {self._engine.stage}; resume with the same"
            )
        self._engine.load(self.folder, path.name)
        own = torch.load(path / _own_name(self._processes.rank), map_location="cpu", weights_only=True)
        return Loaded(path, manifest["shared"], own)


def _own_name(rank: int) -> str:
    """The file with one process's values."""
    return f"process_{rank}.pt"


def _owner(name: str) -> int | None:
    """The process that writes and reads a file, or None where the first writes it for all."""
    found = re.match(r"process_(\d+)\.pt|(?:\w+_)?zero_pp_rank_(\d+)_", Path(name).name)
    return int(found.group(1) or found.group(2)) if found else None


def _remove(path: Path) -> None:
    """Delete a checkpoint; without its manifest it is none from the first moment on."""
    (path / MANIFEST).unlink()
    shutil.rmtree(path)
