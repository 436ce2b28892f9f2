"""Checkpoints that exist whole or not at all, and are read by all processes or by none.

A folder `step_N` is written as `step_N.tmp`: one file per process with its part of weights, moments and averages
(shards.py), one with what only that process knows (random states), and the model's buffers. Every process flushes its
files and reports their hashes; the first writes them into manifest.json and renames the folder, which is the commit;
then it points `latest` there and removes old ones. A checkpoint may be written in the background: the values are copied,
training goes on, and the commit follows at a later boundary, when every process has its files on disk.
DeepSpeed's own checkpoints are not used: its `latest` can name one that another process has not finished, and they only
fit the number of processes and the ZeRO stage that wrote them (deepspeed.md section 6).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jmp_ds.errors import UserError
from jmp_ds.files import same_access, sha256, to_disk, write_json, write_text
from jmp_ds.training.engine import Engine
from jmp_ds.training.processes import Processes
from jmp_ds.training.shards import Shards

FORMAT = 2
MANIFEST = "manifest.json"
_BUFFERS = "buffers.safetensors"
_OLD = ".old"
_NAME = re.compile(r"step_(\d+)(\.old)?")
_log = logging.getLogger(__name__)

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gave back, besides what went into the engine.

    Attributes:
        path: its folder.
        shared: the values that were the same for all processes.
        own: this process's values; None where another number of processes wrote.
        written_by: the number of processes and the ZeRO stage of the run that wrote it.
    """

    path: Path
    shared: dict[str, Any]
    own: dict[str, Any] | None
    written_by: tuple[int, int]


@dataclass(frozen=True)
class _Pending:
    """A checkpoint whose files are being written: the folder, what the manifest will say, and this process's files."""

    aside: Path
    step: int
    content: dict[str, Any]
    written: Future[Records]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`; `latest` is beside it.
        engine, shards: what is saved and restored.
        keep: how many of the newest stay; so does the one with the smallest primary metric.
        background: write files while training goes on; needs the host's memory for one more copy.
        alive: called now and then while files are written and read.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        shards: Shards,
        keep: int = 2,
        *,
        background: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._engine = engine
        self._shards = shards
        self._processes: Processes = engine.processes
        self._alive = alive
        self._writer = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: _Pending | None = None
        self.write_seconds = 0.0  #: that this process's files took, the last time

    # ------------------------------------------------------------------------------------------------- write

    def save(self, step: int, shared: dict[str, Any], own: dict[str, Any], primary: float | None = None) -> None:
        """Write a checkpoint, or begin to; collective.

        Args:
            step: number in its name.
            shared: JSON values, the first process's count.
            own: tensors, numbers, texts and nests of them, of this process.
            primary: the metric of these weights, where it is known: the smallest one decides what is best.

        Raises:
            OSError: it, or the one before, could not be written, for example for lack of space; older ones are
                untouched.
        """
        self.finish()
        aside = self.folder / f"step_{step}.tmp"
        self._prepare(aside)
        content = {"step": step, "primary": primary, "shared": shared, **self._shards.facts()}
        written: Future[Records]
        if self._writer is None:
            written = Future()
            try:
                written.set_result(self._write(aside, self._shards.tensors(), own))
            except Exception as error:  # told to all in `finish`
                written.set_exception(error)
        else:
            written = self._writer.submit(self._write, aside, self._shards.host_copy(), own)
        self._pending = _Pending(aside, step, content, written)
        if self._writer is None:
            self.finish()

    @property
    def ready(self) -> bool:
        """Whether this process has done its part of a checkpoint that is not committed yet."""
        return self._pending is not None and self._pending.written.done()

    def finish(self) -> None:
        """Commit the checkpoint that is being written, if there is one; collective. Raises: see `save`."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        problem, records = "", {}
        try:
            records = pending.written.result()
        except Exception as error:  # torch and safetensors tell a full disk each in its own way
            problem = f"process {self._processes.rank}: {error}"
        self._raise_together(problem, pending.aside)
        files = {name: record for part in self._processes.gather(records) for name, record in part.items()}
        try:
            if self._processes.first:
                self._commit(pending, files)
        except OSError as error:
            problem = str(error)
        self._raise_together(problem, pending.aside)

    def _prepare(self, aside: Path) -> None:
        """An empty folder, and none of those left by processes that were ended while writing or deleting."""
        problem = ""
        try:
            if self._processes.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                for rest in self.folder.glob("step_*"):
                    if not (rest / MANIFEST).is_file() or rest.suffix == ".tmp":
                        shutil.rmtree(rest)
                aside.mkdir()
        except OSError as error:
            problem = str(error)
        self._raise_together(problem, aside)

    def _write(self, folder: Path, tensors: dict[str, Any], own: dict[str, Any]) -> Records:
        """This process's files, on disk; their sizes and hashes. The first also writes what is the same for all."""
        rank, began = self._processes.rank, time.monotonic()
        paths = [folder / _shard_name(rank), folder / _own_name(rank)]
        self._shards.write(paths[0], tensors)
        self._alive()
        torch.save(own, paths[1])
        if self._processes.first and (buffers := self._shards.buffers()):
            paths.append(folder / _BUFFERS)
            save_file(buffers, paths[-1])
        records = {}
        for path in paths:
            same_access(path, paths[1])
            to_disk(path)
            self._alive()
            records[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
            self._alive()
        self.write_seconds = time.monotonic() - began
        return records

    def _raise_together(self, problem: str, aside: Path) -> None:
        """If one process could not write, all raise."""
        problems = [p for p in self._processes.gather(problem) if p]
        if problems:
            if self._processes.first:
                shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"checkpoint {aside.stem} could not be written: {'; '.join(problems)}")

    def _commit(self, pending: _Pending, files: Records) -> None:
        """Make the written folder a checkpoint, then forget old ones."""
        aside, final = pending.aside, pending.aside.with_suffix("")
        manifest = {
            "format": FORMAT,
            "world": self._processes.world,
            "stage": self._engine.stage,
            "files": files,
            **pending.content,
        }
        write_json(aside / MANIFEST, {**manifest, "sha256": _digest(manifest)})
        if final.exists():  # resumed and stopped at once; there is one of this step at every moment
            final.replace(final.with_suffix(_OLD))
        aside.rename(final)
        to_disk(self.folder)
        write_text(self.folder.parent / "latest", f"checkpoints/{final.name}\n")
        self._forget(pending.step)

    def _forget(self, step: int) -> None:
        """Remove what is not to be kept, after the checkpoint of `step` is there."""
        for old in self.folder.glob(f"step_*{_OLD}"):
            if (old.with_suffix("") / MANIFEST).is_file():
                _remove(old)
        numbers = {path: _number(path) for path in self.candidates()}
        # Newer ones were not whole when this run went on from an older one; they must not count as kept.
        abandoned = [path for path, number in numbers.items() if number > step]
        rest = [path for path in numbers if path not in abandoned]
        best = min(rest, key=_primary)
        for path in abandoned + [path for path in rest[self.keep :] if path != best]:
            _remove(path)

    # -------------------------------------------------------------------------------------------------- read

    def candidates(self) -> list[Path]:
        """Folders that look like checkpoints, newest first; one for each step."""
        found: dict[int, Path] = {}
        for path in sorted(self.folder.glob("step_*"), reverse=True):  # `.old` counts where there is nothing newer
            if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file():
                found[_number(path)] = path
        return [path for _, path in sorted(found.items(), reverse=True)]

    def load_newest(self) -> Loaded | None:
        """Restore the newest checkpoint that is whole on every process; collective. None if there never was one.

        Raises:
            UserError: none is whole, or it belongs to another network or an older version.
        """
        names = self._processes.from_first([p.name for p in self.candidates()])
        for name in names:
            path = self.folder / name
            problem = self._problem(path)
            if self._processes.all_agree(problem is None):
                return self._load(path)
            told = [p for p in self._processes.gather(problem) if p]
            if self._processes.first:
                _log.warning("checkpoint %s is not whole (%s); trying the one before", path, "; ".join(told))
        if names or self._processes.from_first((self.folder.parent / "latest").exists()):
            raise UserError(
                f"none of the checkpoints in {self.folder} is whole; remove them and `latest` to start anew"
            )
        return None

    def _problem(self, path: Path) -> str | None:
        """Why a checkpoint cannot be used, or None.

        Every process compares the sizes of all files; the hashes are shared out among them.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                return None  # told as such when it is loaded
            if manifest.pop("sha256") != _digest(manifest):
                return f"the content of {MANIFEST} has changed"
            for name, record in manifest["files"].items():
                self._alive()
                file = path / name
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != record["size"]:
                    return f"{name} has {file.stat().st_size} bytes instead of {record['size']}"
                if self._checks(name) and sha256(file) != record["sha256"]:
                    return f"the content of {name} has changed"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} cannot be read: {error}"
        return None

    def _checks(self, name: str) -> bool:
        """Whether this process compares a file's hash: its own file, its share of those of more processes."""
        found = re.search(r"_(\d+)\.", name)
        return (int(found.group(1)) if found else 0) % self._processes.world == self._processes.rank

    def _load(self, path: Path) -> Loaded:
        """Restore a checkpoint known to be whole."""
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path}: checkpoint format {manifest['format']}, this version reads {FORMAT}; "
                "go on with the version that wrote it, or start anew from the bundle in best/ or final/"
            )
        rank, written = self._processes.rank, int(manifest["world"])
        ranks = sorted(range(written), key=lambda r: r != rank)  # its own first: with the same cut it is all there is
        self._shards.read([path / _shard_name(r) for r in ranks], manifest)
        if (path / _BUFFERS).is_file():
            self._shards.set_buffers(load_file(path / _BUFFERS))
        self._alive()
        own = None
        if written == self._processes.world:
            own = torch.load(path / _own_name(rank), map_location="cpu", weights_only=True)
        return Loaded(path, manifest["shared"], own, (written, int(manifest["stage"])))


def _shard_name(rank: int) -> str:
    """The file with one process's part of weights, moments and averages."""
    return f"shard_{rank}.safetensors"


def _own_name(rank: int) -> str:
    """The file with one process's own values."""
    return f"process_{rank}.pt"


def _number(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.with_suffix("").name.removeprefix("step_"))


def _digest(manifest: dict[str, Any]) -> str:
    """Checksum of what a manifest says, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _primary(path: Path) -> float:
    """A checkpoint's metric; infinite where there is none."""
    try:
        value = json.loads((path / MANIFEST).read_text())["primary"]
    except (OSError, ValueError, KeyError):
        return float("inf")
    return float("inf") if value is None else float(value)


def _remove(path: Path) -> None:
    """Delete a checkpoint; without its manifest it is none from the first moment on."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
