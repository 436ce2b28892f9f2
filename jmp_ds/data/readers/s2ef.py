"""OC20/OC22 S2EF as downloaded: N.extxyz.xz with structures beside N.txt.xz with `sid,frameK,ref_energy` per structure.

The energy of the structure file is the total one; `energy` here is it minus the reference energy (the adsorption energy
where the references are those of slab and adsorbate). A file whose references are all 0 therefore gives total energies.
Tags are OCP's (0 bulk, 1 surface, 2 adsorbate) if the structure file has a column `tags`.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from ase.io.extxyz import read_xyz

from jmp_ds.data.readers.archive import open_binary
from jmp_ds.data.readers.ase_any import fields_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError

ABOUT = About(
    title="OCP S2EF download: *.extxyz.xz with *.txt.xz beside it",
    units="eV, Å, eV/Å",
    energy="total energy minus the reference energy of the .txt file",
    level_of_theory="RPBE (OC20) or PBE+U (OC22), VASP",
    licence="CC BY 4.0",
    citation="Chanussot et al., ACS Catal. 11, 6059 (2021); Tran et al., ACS Catal. 13, 3066 (2023)",
    patterns=("*.extxyz.xz", "*.extxyz"),
    labels={"energy": "eV", "forces": "eV/Å"},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every structure; the group is the system id (sid), so that a relaxation is never cut by a split.

    Option level `total` leaves the reference energies unsubtracted.

    Raises:
        UserError: the .txt file is missing, or the two files do not have the same number of entries.
    """
    lines = _references(path)
    total = options.level == "total"
    facts = {"energy": "total energy" if total or not any(ref for *_, ref in lines) else ABOUT.energy}
    collector = Collector(facts)
    count = 0
    with open_binary(path) as raw:
        # ASE goes back and forth in the file, which in packed data means unpacking again; a file (5000 frames) fits memory.
        text = io.StringIO(raw.read().decode("utf-8"))
        for frame, line in itertools.zip_longest(read_xyz(text, index=slice(None)), lines):
            if frame is None or line is None:
                longer = path.name if line is None else "its .txt file"
                raise UserError(f"{path}: {longer} has more entries than the other; {count} were read from both")
            sid, step, reference = line
            where = f"{sid}_{step}"
            results = dict(frame.calc.results) if frame.calc is not None else {}
            if "energy" in results and not total:
                results["energy"] = results["energy"] - reference
            info = {**frame.info, "sid": sid, "frame": step, "ref_energy": reference}
            try:
                fields = fields_of(frame, results, info, options)
            except BadRecord as bad:
                collector.skip(bad, where)
            else:
                tags = frame.get_tags() if frame.has("tags") else fields["tags"]
                group = fields["group"] if options.group_key else sid
                collector.add(where, **{**fields, "tags": tags, "group": group, "id": fields["id"] or where})
            count += 1
            if collector.full:
                yield collector.take(count / len(lines))
    yield collector.take(1.0)


def _references(path: Path) -> list[tuple[str, str, float]]:
    """(sid, frame, reference energy in eV) per structure, of the .txt file beside a structure file."""
    beside = path.with_name(path.name.replace(".extxyz", ".txt"))
    if beside == path or not beside.is_file():
        raise UserError(f"{path}: the file with reference energies, {beside.name}, is not beside it")
    out: list[tuple[str, str, float]] = []
    with open_binary(beside) as raw:
        for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8"), start=1):
            if not line.strip():
                continue
            try:
                sid, frame, reference = line.strip().split(",")
                out.append((sid, frame, float(reference)))
            except ValueError as error:
                raise UserError(f"{beside}, line {number}: expected `sid,frame,ref_energy`, got {line!r}") from error
    return out
