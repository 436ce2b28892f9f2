"""Structures left out by a list: what a list says, what is counted, and where the others stand in the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from data.test_resume import digest, frames, options
from rich.console import Console
from typer.testing import CliRunner, Result

from jmp_ds.cli.app import app
from jmp_ds.data.convert import ConvertOptions, convert
from jmp_ds.data.exclusion import read_exclusion
from jmp_ds.data.fetch.sources import source
from jmp_ds.data.published import PublishedSplit, make, of_store
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def excluding(file: Path, rows: str = "", **changes: Any) -> ConvertOptions:
    return ConvertOptions(progress=False, exclude=read_exclusion(file, rows), **changes)


def test_a_plain_list_and_a_table(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("# broken ones\n\n  a.xyz#3  \n17\n")
    found = read_exclusion(plain)
    assert (found.source, found.names, found.numbers) == ("plain.txt", {"a.xyz#3", "17"}, {17})
    table = read_exclusion(layouts.uncharacterized(tmp_path / "u.txt", [2, 5, 6]), "9:-1")
    assert table.names == {"2", "5", "6"}, "neither heading nor closing line, which begin with numbers too"


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ("", "", "names no structure"),
        ("a\nb\n", "5:", "names no structure in lines 5:"),
        ("a\nb c\n", "", r"line 2 has several columns; .* --exclude-rows 9:-1"),
        ("a\n", "9", "--exclude-rows 9: must look like FIRST:LAST"),
        (None, "", "cannot be read"),
    ],
)
def test_lists_that_cannot_be_meant(tmp_path: Path, text: str | None, rows: str, message: str) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_exclusion(tmp_path / "list.txt", rows)


def test_numbered_molecules_are_left_out_and_counted(tmp_path: Path) -> None:
    """Three of ten, more than `max_bad` allows of bad ones; a number that is not there is told by the count."""
    folder = layouts.qm9_original(tmp_path / "xyz", range(1, 11))
    listed = layouts.uncharacterized(tmp_path / "u.txt", [2, 5, 6, 400])
    report = convert([folder], tmp_path / "s", "qm9", options=excluding(listed, "9:-1"))
    assert not report.failed
    assert (report.written, report.skipped, report.excluded, report.bad) == (7, 3, 3, 0)
    assert report.reasons["excluded"].where == "dsgdb9nsd_000002"
    assert report.reasons["excluded"].message == "u.txt names 2"
    assert report.notes == ["u.txt has 4 names; 3 structures were left out by it"]
    console = Console(width=120, record=True, quiet=True)
    console.print(report.table())
    store = Store(tmp_path / "s")
    assert [r.info["index"] for r in store] == [1, 3, 4, 7, 8, 9, 10]
    said = store.metadata
    assert said["skipped"] == {}
    assert (said["excluded"]["list"], said["excluded"]["names"], said["excluded"]["structures"]) == ("u.txt", 4, 3)
    assert len(said["excluded"]["sha256"]) == 64


def test_published_splits_are_over_the_rest(tmp_path: Path) -> None:
    """The same molecules in every part as in a source that never had the excluded ones."""
    out = {2, 5, 6, 13}
    folder = layouts.qm9_original(tmp_path / "xyz", range(1, 31))
    listed = layouts.uncharacterized(tmp_path / "u.txt", sorted(out))
    convert([folder], tmp_path / "s", "qm9", options=excluding(listed, "9:-1"))
    how = PublishedSplit(parts={"train": "rest", "val": 4, "test": 5}, seed=42)
    store, rest = Store(tmp_path / "s"), [n for n in range(1, 31) if n not in out]
    for name, positions in make(how, len(rest)).items():
        found = [store[int(i)].info["index"] for i in of_store(how, store)[name]]
        assert found == [rest[p] for p in positions], name


def test_a_split_beside_bad_structures(tmp_path: Path) -> None:
    """Bad molecules keep their positions; with excluded ones beside them nobody knows any more which are meant."""
    how = PublishedSplit(parts={"train": "rest", "test": 5}, seed=42)
    folder = layouts.qm9_original(tmp_path / "xyz", range(1, 21), damaged=[7])
    convert([folder], tmp_path / "all", "qm9", options=ConvertOptions(progress=False, max_bad=1))
    store = Store(tmp_path / "all")
    parts = of_store(how, store)
    expected = [p + 1 for p in make(how, 20)["test"] if p != 6]
    assert [store[int(i)].info["index"] for i in parts["test"]] == expected
    listed = layouts.uncharacterized(tmp_path / "u.txt", [3])
    convert([folder], tmp_path / "less", "qm9", options=excluding(listed, "9:-1", max_bad=1))
    with pytest.raises(UserError, match="some structures were excluded and others could not be taken"):
        of_store(how, Store(tmp_path / "less"))


def test_ids_of_any_format_by_any_number_of_processes(tmp_path: Path) -> None:
    """Ids of frames; the store does not depend on who read the parts. Frames 0, 997, … are bad, whoever names them."""
    source = frames(tmp_path / "a.npz", 4000)
    (tmp_path / "list.txt").write_text("".join(f"a#{i}\n" for i in range(0, 4000, 100)))
    exclusion = read_exclusion(tmp_path / "list.txt")
    stores = [tmp_path / "one", tmp_path / "two"]
    reports = [
        convert([source], store, "md17", options=options(processes, exclude=exclusion))
        for store, processes in zip(stores, (1, 2), strict=True)
    ]
    for report in reports:
        assert (report.excluded, report.bad, report.written) == (39, 5, 3956)
    assert digest(stores[0]) == digest(stores[1])
    left = {record.id for record in Store(stores[0])}
    assert left.isdisjoint(exclusion.names)


def test_a_list_that_names_everything(tmp_path: Path) -> None:
    folder = layouts.qm9_original(tmp_path / "xyz", [1, 2])
    (tmp_path / "list.txt").write_text("dsgdb9nsd_000001\ndsgdb9nsd_000002\n")
    report = convert([folder], tmp_path / "s", "qm9", options=excluding(tmp_path / "list.txt"))
    assert report.failure == "the sources hold no structures; 2 were excluded"
    assert not (tmp_path / "s").exists()


def test_from_the_shell(tmp_path: Path) -> None:
    folder = layouts.qm9_original(tmp_path / "xyz", range(1, 6))
    listed = layouts.uncharacterized(tmp_path / "u.txt", [2, 4])
    words = ("data", "convert", folder, tmp_path / "s", "--format", "qm9")
    done = run(*words, "--exclude", listed, "--exclude-rows", "9:-1")
    assert done.exit_code == 0, done.output
    assert "3 structures taken, 2 left out" in done.output
    assert "excluded" in done.output
    assert "note: u.txt has 2 names; 2 structures were left out by it" in done.output
    for more, message in (
        (["--exclude", listed], "line 2 has several columns"),
        (["--exclude-rows", "9:-1"], "but there is no list: --exclude FILE"),
    ):
        wrong = run(*words[:3], tmp_path / "t", *words[4:], *more)
        assert wrong.exit_code == 2
        assert message in wrong.output


def test_what_is_fetched_for_it() -> None:
    """The publishers' list is fetched beside the molecules, and meant to be excluded."""
    found = source("qm9-original")
    assert [f.exclude for f in found.files] == [False, True]
    assert found.convert == "--format qm9 --exclude-rows 9:-1"


def test_numbers_are_whole(tmp_path: Path) -> None:
    """A number that the source gives is compared as a number: 000005 is 5."""
    (tmp_path / "list.txt").write_text("000005\n")
    folder = layouts.qm9_original(tmp_path / "xyz", [4, 5])
    convert([folder], tmp_path / "s", "qm9", options=excluding(tmp_path / "list.txt"))
    assert np.array_equal([r.info["index"] for r in Store(tmp_path / "s")], [4])
