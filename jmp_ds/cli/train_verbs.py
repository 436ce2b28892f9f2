"""`jmp-ds pretrain` and `jmp-ds finetune`, in this process or through a launcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jmp_ds.cli.base import MISTAKE
from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from jmp_ds.cli.launch_commands import Launcher, Layout
    from jmp_ds.config.checks import Checked
    from jmp_ds.config.loading import Resolved
    from jmp_ds.config.pretrain import TrainingConfig
    from jmp_ds.training.outcome import Outcome

#: Exit code of a run that was asked to stop and can be continued.
STOPPED = 3

Words = Annotated[list[str], typer.Argument(metavar="CONFIG [KEY.SUB=VALUE]...", show_default=False)]
TuneWords = Annotated[list[str] | None, typer.Argument(metavar="[CONFIG]... [KEY.SUB=VALUE]...", show_default=False)]
Recipe = Annotated[str | None, typer.Option(help="recipe that lies under the file; a name or a YAML file")]
Processes = Annotated[int, typer.Option(min=1, help="start so many local processes through the deepspeed launcher")]
Restarts = Annotated[
    int,
    typer.Option(
        min=0, help="start again by itself after a failure, at most so often in a row without a new checkpoint"
    ),
]
Check = Annotated[bool, typer.Option("--check", help="only check the configuration and print it resolved")]
Prepare = Annotated[
    bool, typer.Option("--prepare", help="only draw splits and count edges, with every core; a run does so, with one")
]


@dataclass(frozen=True)
class Prepared:
    """What was asked of a training verb, read and checked.

    Attributes:
        folders: of its runs.
        device, wall_time: as configured.
        show: prints the configuration.
        prepare: draws splits and counts edges.
        run: does it in this process, and yields the outcomes.
    """

    folders: list[Path]
    device: str
    wall_time: float | None
    show: Callable[[], object]
    prepare: Callable[[], object]
    run: Callable[[], Iterable[Outcome]]


def pretrain(
    words: Words,
    recipe: Recipe = None,
    processes: Processes = 1,
    auto_restart: Restarts = 0,
    check: Check = False,
    prepare: Prepare = False,
) -> None:
    """Train one network on several tasks from random weights.

    CONFIG is a YAML file; KEY.SUB=VALUE (YAML syntax) wins over it, e.g. `train.optimizer.lr=1e-4`. A run folder that
    holds a checkpoint is resumed. Exit codes: 0 finished, 2 a mistake in what was asked, 3 stopped on request.
    More machines than one: `jmp-ds launch`.
    """
    _do(
        _prepare_pretrain(words, recipe),
        ["pretrain", *_arguments(words, recipe)],
        processes,
        auto_restart,
        check,
        prepare,
    )


def finetune(
    words: TuneWords = None,
    recipe: Recipe = None,
    processes: Processes = 1,
    auto_restart: Restarts = 0,
    check: Check = False,
    prepare: Prepare = False,
) -> None:
    """Train a pre-trained network on tasks of your own.

    CONFIG is a YAML file, or several that are run one after the other; KEY.SUB=VALUE (YAML syntax) wins over all of
    them. `from: {bundle: FOLDER, heads: new | keep | copy:TASK}` or `from: scratch`. A recipe such as `qm9/homo`
    (`jmp-ds recipes`) needs no file, only `run.dir=FOLDER from=BUNDLE` and the data that it names.
    """
    given = words or []
    _do(
        _prepare_finetune(given, recipe),
        ["finetune", *_arguments(given, recipe)],
        processes,
        auto_restart,
        check,
        prepare,
    )


def prepare(words: Sequence[str]) -> Prepared:
    """Read and check `pretrain …` or `finetune …`, words as on the command line.

    Raises:
        UserError: it is another verb, an option that a launch has no use for, or a mistake in the configuration.
    """
    verbs = {"pretrain": _prepare_pretrain, "finetune": _prepare_finetune}
    if not words or words[0] not in verbs:
        raise UserError(f"launch starts pretrain or finetune, not {words[0] if words else 'nothing'}")
    rest, recipe = list(words[1:]), None
    for number, word in enumerate(rest):
        if word.startswith("--recipe"):
            _, equals, recipe = word.partition("=")
            if not equals:
                recipe = rest[number + 1] if number + 1 < len(rest) else ""
            del rest[number : number + (1 if equals else 2)]
            break
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        raise UserError(f"launch: {words[0]} takes only --recipe here, not {unknown[0]}")
    return verbs[words[0]](rest, recipe)


def _prepare_pretrain(words: Sequence[str], recipe: str | None) -> Prepared:
    from jmp_ds.config import load_pretrain
    from jmp_ds.config.checks import check_pretrain
    from jmp_ds.pretrain import run_pretrain

    files, overrides = divide(words)
    if len(files) != 1:
        raise UserError(f"pretrain takes one configuration file, got {len(files)}: {', '.join(files) or 'none'}")
    resolved = load_pretrain(Path(files[0]), overrides, recipe)
    checked = check_pretrain(resolved)
    run = resolved.config.run
    return Prepared(
        [Path(run.dir)],
        run.device,
        run.wall_time,
        lambda: _show([(resolved, checked)]),
        lambda: _prepare_data([(resolved, checked)]),
        lambda: [run_pretrain(resolved, checked)],
    )


def _prepare_finetune(words: Sequence[str], recipe: str | None) -> Prepared:
    from jmp_ds.config import load_finetune
    from jmp_ds.config.checks import check_finetune
    from jmp_ds.finetune import run_finetune

    files, overrides = divide(words)
    if not files and recipe is None:
        raise UserError("finetune takes at least one configuration file, or a recipe (jmp-ds recipes)")
    paths: list[Path | None] = [Path(file) for file in files]
    runs = [load_finetune(path, overrides, recipe) for path in paths or [None]]
    both = [(resolved, check_finetune(resolved)) for resolved in runs]
    folders = [Path(resolved.config.run.dir) for resolved in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("finetune: two configurations have the same run.dir; give each its own")
    return Prepared(
        folders,
        runs[0].config.run.device,
        runs[0].config.run.wall_time,
        lambda: _show(both),
        lambda: _prepare_data(both),
        lambda: run_finetune(both),
    )


def _show(runs: Sequence[tuple[Resolved[TrainingConfig], Checked]]) -> None:
    """Every setting; on stderr, what has to be done before many processes start."""
    from jmp_ds.experiment.preparing import structures_of, too_long, uncounted

    for resolved, checked in runs:
        typer.echo(resolved.to_yaml(), nl=False)
        if too_long(stores := uncounted(resolved, checked)):
            typer.echo(
                f"edges of {structures_of(stores):,} structures are not counted yet: run this with --prepare before a run "
                "of several processes",
                err=True,
            )


def _prepare_data(runs: Sequence[tuple[Resolved[TrainingConfig], Checked]]) -> None:
    """Splits and edge counts of all runs."""
    from jmp_ds.cli.launching import launched
    from jmp_ds.experiment.preparing import prepare

    if launched():
        raise UserError("--prepare is done by one process with every core; start it without a launcher")
    for resolved, checked in runs:
        counted = prepare(resolved, checked)
        typer.echo(f"{resolved.config.run.dir}: splits drawn, edges of {counted:,} structures counted", err=True)


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and overrides (what contains `=`)."""
    return [w for w in words if "=" not in w], [w for w in words if "=" in w]


def _arguments(words: Sequence[str], recipe: str | None) -> list[str]:
    return [*words, *(["--recipe", recipe] if recipe else [])]


def _do(prepared: Prepared, words: Sequence[str], processes: int, restarts: int, check: bool, prepare: bool) -> None:
    """Show the configuration, prepare data, start processes, or train here."""
    from jmp_ds.cli.launch_commands import Launcher, Layout
    from jmp_ds.cli.launching import free_port

    if check:
        prepared.show()
    elif prepare:
        prepared.prepare()
    elif processes > 1 or restarts:
        launcher = Launcher.local if processes > 1 else None
        start(prepared, words, launcher, Layout(per_node=processes, port=free_port()), restarts)
    else:
        for folder, outcome in zip(prepared.folders, prepared.run(), strict=False):
            _finish(folder, outcome)


def start(
    prepared: Prepared, words: Sequence[str], launcher: Launcher | None, layout: Layout, restarts: int = 0
) -> None:
    """Run a launcher's command, again after a failure; the exit code follows from the outcomes in the run folders.

    Launchers lose exit codes, so a run counts as finished only if its folder says so, and said so since the start. Where
    the launcher is started on every machine, the first one judges.

    Args:
        prepared: what `words` ask for.
        words: after `jmp-ds`.
        launcher: None starts a single process.
        layout: where the processes run.
        restarts: at most so many in a row without a new checkpoint.
    """
    from jmp_ds.cli.launch_commands import Launcher
    from jmp_ds.cli.launching import execute, launched, make_command, on_new_port, stopper
    from jmp_ds.cli.restarting import Attempts, remaining_wall_time
    from jmp_ds.training.outcome import NewOutcomes

    if launched():
        raise UserError(
            "launch: this process was itself started by a launcher; start one, without --processes, --auto-restart "
            "or launch"
        )
    began, folder = time.monotonic(), prepared.folders[0]

    def once(again: bool) -> int:
        there = on_new_port(launcher, layout) if again else layout
        left = remaining_wall_time(prepared.wall_time, began) if again else []
        command = make_command(launcher, [*words, *left], there, folder, prepared.device)
        return execute(command, stopper(launcher, there))

    outcomes = NewOutcomes(prepared.folders)
    only_here = launcher is not Launcher.srun
    code = Attempts(once, prepared.folders, restarts, judge=layout.node_rank == 0, only_here=only_here).run()
    if layout.node_rank > 0:
        raise typer.Exit(abs(code))
    if code == MISTAKE or (code == STOPPED and launcher is None):
        raise typer.Exit(code)  # the process has said why
    for run, outcome in outcomes:
        _judge(run, code, outcome)


def _judge(folder: Path, code: int, outcome: Outcome | None) -> None:
    """End this program as the run in a folder has ended."""
    if outcome is None or outcome.status in ("running", "failed"):
        reason = outcome.reason if outcome is not None and outcome.reason else "a process died; its message is above"
        typer.echo(f"jmp-ds: the run in {folder} failed: {reason}", err=True)
        raise typer.Exit(code if code > 0 else 1)
    _finish(folder, outcome)


def _finish(folder: Path, outcome: Outcome) -> None:
    """A stopped run says how to go on, and has an exit code of its own; in launched processes the parent says it."""
    from jmp_ds.cli.launching import launched

    if outcome.status == "stopped" and not launched():
        typer.echo(f"stopped at step {outcome.step} ({outcome.reason}); the same command goes on from there", err=True)
        raise typer.Exit(STOPPED)
