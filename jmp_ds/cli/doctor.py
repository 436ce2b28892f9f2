"""`jmp-ds doctor`: what is installed, what will run, what is missing or in the way."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jmp_ds.cli.checkup.finding import Finding

_MARKS = {"ok": "", "off": "[dim]", "problem": "[yellow]", "missing": "[red]"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False) -> None:
    """Report versions, devices, interconnect, launchers, compilers, what is switched off and why, and leftovers.

    Leftovers are locks of half-built operators, which make later runs wait for ever, and files in shared memory whose
    processes are gone. Nothing is changed. Exit code 1 if something is missing without which nothing works.
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    missing = [finding.name for finding in findings if finding.level == "missing"]
    if missing:
        typer.echo(f"missing: {', '.join(missing)}; install with pip install jmp-ds", err=True)
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Everything; what needs torch only where there is one."""
    import importlib.util

    from jmp_ds.cli.checkup import leftovers, software

    findings = list(software.versions())
    if importlib.util.find_spec("torch") is not None:
        from jmp_ds.cli.checkup import limits, machine

        findings += [*machine.devices(), *machine.interconnect(), *limits.switched_off(), *limits.launch_environment()]
    built_in = leftovers.extensions(dict(os.environ), Path.home())
    findings += [*software.programs(), *leftovers.locks(built_in), *leftovers.shared_memory()]
    return findings


def _show(findings: list[Finding]) -> None:
    """A table for each topic, and at the end what somebody should do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for topic in dict.fromkeys(finding.topic for finding in findings):
        table = Table(title=topic, title_justify="left", show_header=False)
        for finding in findings:
            if finding.topic == topic:
                text = f"{finding.value}: {finding.advice}" if finding.advice else finding.value
                mark = _MARKS[finding.level]
                table.add_row(finding.name, f"{mark}{escape(text)}")
        console.print(table)
    problems = [finding for finding in findings if finding.level == "problem"]
    for finding in problems:
        console.print(f"[yellow]{escape(f'{finding.name}: {finding.advice}')}[/yellow]", soft_wrap=True)
    console.print(f"{len(problems)} problems" if problems else "no problem found")
