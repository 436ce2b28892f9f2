"""`jmp-ds pretrain` and `jmp-ds finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jmp_ds.cli.base import MISTAKE
from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from jmp_ds.training.outcome import Outcome

#: Exit code of a run that was asked to stop and can be continued.
STOPPED = 3

Words = Annotated[list[str], typer.Argument(metavar="CONFIG [KEY.SUB=VALUE]...", show_default=False)]
Recipe = Annotated[str | None, typer.Option(help="recipe that lies under the file; a name or a YAML file")]
Processes = Annotated[int, typer.Option(min=1, help="start so many local processes through the deepspeed launcher")]
Check = Annotated[bool, typer.Option("--check", help="only check the configuration and print it resolved")]


def pretrain(words: Words, recipe: Recipe = None, processes: Processes = 1, check: Check = False) -> None:
    """Train one network on several tasks from random weights.

    CONFIG is a YAML file; KEY.SUB=VALUE (YAML syntax) wins over it, e.g. `train.optimizer.lr=1e-4`. A run folder that
    holds a checkpoint is resumed. Exit codes: 0 finished, 2 a mistake in what was asked, 3 stopped on request.
    """
    from jmp_ds.config import load_pretrain
    from jmp_ds.config.checks import check_pretrain
    from jmp_ds.pretrain import run_pretrain

    files, overrides = divide(words)
    if len(files) != 1:
        raise UserError(f"pretrain takes one configuration file, got {len(files)}: {', '.join(files) or 'none'}")
    resolved = load_pretrain(Path(files[0]), overrides, recipe)
    checked = check_pretrain(resolved)
    if check:
        typer.echo(resolved.to_yaml(), nl=False)
    elif processes > 1:
        run_dirs = [Path(resolved.config.run.dir)]
        _launch(["pretrain", *_arguments(files, overrides, recipe)], processes, run_dirs, resolved.config.run.device)
    else:
        _finish(Path(resolved.config.run.dir), run_pretrain(resolved, checked))


def finetune(words: Words, recipe: Recipe = None, processes: Processes = 1, check: Check = False) -> None:
    """Train a pre-trained network on tasks of your own.

    CONFIG is a YAML file, or several that are run one after the other; KEY.SUB=VALUE (YAML syntax) wins over all of
    them. `from: {bundle: FOLDER, heads: new | keep | copy:TASK}` or `from: scratch`.
    """
    from jmp_ds.config import load_finetune
    from jmp_ds.config.checks import check_finetune
    from jmp_ds.finetune import run_finetune

    files, overrides = divide(words)
    if not files:
        raise UserError("finetune takes at least one configuration file")
    runs = [load_finetune(Path(file), overrides, recipe) for file in files]
    checked = [check_finetune(resolved) for resolved in runs]
    folders = [Path(resolved.config.run.dir) for resolved in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("finetune: two configurations have the same run.dir; give each its own")
    if check:
        for resolved in runs:
            typer.echo(resolved.to_yaml(), nl=False)
    elif processes > 1:
        _launch(["finetune", *_arguments(files, overrides, recipe)], processes, folders, runs[0].config.run.device)
    else:
        for folder, outcome in zip(folders, run_finetune(list(zip(runs, checked, strict=True))), strict=False):
            _finish(folder, outcome)


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and overrides (what contains `=`)."""
    return [w for w in words if "=" not in w], [w for w in words if "=" in w]


def _arguments(files: Sequence[str], overrides: Sequence[str], recipe: str | None) -> list[str]:
    return [*files, *overrides, *(["--recipe", recipe] if recipe else [])]


def _launch(arguments: Sequence[str], processes: int, folders: Sequence[Path], device: str) -> None:
    """Run in several processes; the exit code follows from the outcomes in the run folders.

    The deepspeed launcher loses exit codes, so a run counts as finished only if its folder says so.
    """
    import torch

    from jmp_ds.cli.launching import launched, relaunch
    from jmp_ds.training.outcome import read_outcome

    if launched():
        raise UserError("--processes: this process was itself started by a launcher; leave the option out")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    code = relaunch(arguments, processes, on_cpu=on_cpu)
    if code == MISTAKE:
        raise typer.Exit(MISTAKE)  # the first process has said what is wrong
    for folder in folders:
        outcome = read_outcome(folder)
        if outcome is None or outcome.status in ("running", "failed"):
            reason = (
                outcome.reason if outcome is not None and outcome.reason else "a process died; its message is above"
            )
            typer.echo(f"jmp-ds: the run in {folder} failed: {reason}", err=True)
            raise typer.Exit(code if code > 0 else 1)
        _finish(folder, outcome)


def _finish(folder: Path, outcome: Outcome) -> None:
    """A stopped run says how to go on, and has an exit code of its own; in launched processes the parent says it."""
    from jmp_ds.cli.launching import launched

    if outcome.status == "stopped" and not launched():
        typer.echo(f"stopped at step {outcome.step} ({outcome.reason}); the same command goes on from there", err=True)
        raise typer.Exit(STOPPED)
