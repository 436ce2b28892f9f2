"""Tables on the command line: whole rows where nobody looks at a terminal."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from jmp_ds.cli.app import app


@pytest.mark.parametrize(("columns", "whole"), [(None, True), ("80", False)])
def test_a_pipe_gets_whole_rows(monkeypatch: pytest.MonkeyPatch, columns: str | None, whole: bool) -> None:
    """Not eighty columns, in which the headings of a plan are letters above one another; who sets COLUMNS gets them."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    result = CliRunner().invoke(app, ["plan", "--model", "jmp-s", "--gpus", "1"])
    assert result.exit_code == 0, result.output
    heading = next(line for line in result.output.splitlines() if "par" in line and line.startswith("┃"))
    assert ("parameters" in heading and "activations" in heading) is whole
