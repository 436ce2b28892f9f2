"""How verbs fail: a mistake of the user is one line and exit code 2; a defect keeps its traceback."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from jmp_ds.errors import UserError
from jmp_ds.training.place import recognise

if TYPE_CHECKING:
    from rich.console import Console

#: Exit code of a mistake that the user can mend.
MISTAKE = 2


class Kernels(StrEnum):
    """What message passing is computed by."""

    auto = "auto"
    torch = "torch"
    triton = "triton"


class Graphs(StrEnum):
    """Where graphs are built."""

    auto = "auto"
    host = "host"
    device = "device"


class FriendlyGroup(TyperGroup):
    """A group of verbs whose user errors are told in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a `UserError` becomes a message on stderr and exit code 2.

        So does, with code 1, the end of a connection: the process that has died says why.
        """
        try:
            return super().invoke(ctx)
        except UserError as error:
            _tell(one_line(error))
            raise typer.Exit(MISTAKE) from None
        except RuntimeError as error:
            if "torch.distributed" not in sys.modules:
                raise
            from jmp_ds.training.processes import explained, lost_contact

            if not lost_contact(error):
                raise
            _tell(" ".join(explained(error).split()))
            raise typer.Exit(1) from None


def _tell(text: str) -> None:
    """A line on stderr that says which process it is from."""
    rank = _rank()
    typer.echo(f"jmp-ds{f' (process {rank})' if rank else ''}: {text}", err=True)


def _rank() -> int:
    """Number of this process among those of its launch; 0 where that cannot be told."""
    try:
        return recognise(os.environ).rank
    except UserError:
        return 0


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal; a file or pipe gets whole rows."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=200)


def new_group(text: str) -> typer.Typer:
    """An empty group of verbs with the house's settings."""
    return typer.Typer(
        cls=FriendlyGroup,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
