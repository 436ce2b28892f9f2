"""Reaction-like paths of small molecules: a bond pulled, a bond turned, a hydrogen moved to another atom.

They are not minimum-energy paths; they leave the neighbourhood of minima in the directions that reactions take.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.data import covalent_radii
from ase.mep import NEB
from numpy.typing import NDArray

from jmp_ds.data.demo.dynamics import relax
from jmp_ds.data.demo.geometry import bonds, rotation, side_of
from jmp_ds.data.demo.labelling import MOLECULAR, DemoFailure, FloatArray
from jmp_ds.data.demo.organics import Draft, allowed_in_pretraining, molecule_info, pick_molecule

#: Images per path, the largest molecule, and the standard deviation (Å) by which images are rattled.
FRAMES, LARGEST, RATTLE = 8, 14, 0.03
#: Stretch of a pulled bond (Å), from slightly compressed to mostly broken.
SHORTEST, LONGEST = -0.1, 1.3
KINDS = ("pull", "turn", "shift")
#: An atom with fewer neighbours than this can take a hydrogen.
SATURATED = {6: 4, 7: 3, 8: 2}


def reaction_path(rng: np.random.Generator) -> Iterator[Draft]:
    """One path of `FRAMES` images."""
    kind = str(rng.choice(KINDS))
    atoms = pick_molecule(rng, lambda a: allowed_in_pretraining(a) and _possible(kind, a), LARGEST)
    make = {"pull": _pull, "turn": _turn, "shift": _shift}[kind]
    info = {**molecule_info(atoms), "kind": kind}
    for position, pos in zip(np.linspace(0.0, 1.0, FRAMES), make(atoms, rng), strict=True):
        moved = pos + rng.normal(0.0, RATTLE, pos.shape)
        frame = Atoms(atoms.numbers, moved - moved.mean(axis=0))
        yield Draft(frame, group="", info={**info, "position": round(float(position), 6)})


def _possible(kind: str, atoms: Atoms) -> bool:
    """Whether a molecule has a bond to pull or turn, or a hydrogen to move."""
    table = bonds(atoms)
    if kind == "shift":
        return bool(_shifts(atoms, table))
    return bool(_open_bonds(atoms, table, turning=kind == "turn"))


def _open_bonds(atoms: Atoms, table: NDArray[np.bool_], turning: bool) -> list[tuple[int, int]]:
    """Bonds outside rings; for turning, those with further neighbours at both ends."""
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(table))]
    if turning:
        pairs = [(a, b) for a, b in pairs if table[a].sum() > 1 and table[b].sum() > 1]
    return [(a, b) for a, b in pairs if side_of(table, a, b) is not None]


def _one_bond(atoms: Atoms, rng: np.random.Generator, turning: bool) -> tuple[int, int, NDArray[np.bool_]]:
    """A random bond and the atoms on the side of its second end."""
    table = bonds(atoms)
    pairs = _open_bonds(atoms, table, turning)
    a, b = pairs[int(rng.integers(len(pairs)))]
    side = side_of(table, a, b)
    assert side is not None
    return a, b, side


def _pull(atoms: Atoms, rng: np.random.Generator) -> list[FloatArray]:
    """A bond stretched until it is mostly broken, both parts rigid."""
    a, b, side = _one_bond(atoms, rng, turning=False)
    along = atoms.positions[b] - atoms.positions[a]
    along /= np.linalg.norm(along)
    return [atoms.positions + side[:, None] * d * along for d in np.linspace(SHORTEST, LONGEST, FRAMES)]


def _turn(atoms: Atoms, rng: np.random.Generator) -> list[FloatArray]:
    """One part turned half a circle about a bond."""
    a, b, side = _one_bond(atoms, rng, turning=True)
    origin = atoms.positions[b]
    axis = origin - atoms.positions[a]
    images = []
    for angle in np.linspace(0.0, np.pi, FRAMES):
        turned = (atoms.positions - origin) @ rotation(axis, float(angle)).T + origin
        images.append(np.where(side[:, None], turned, atoms.positions))
    return images


def _shifts(atoms: Atoms, table: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(hydrogen, giver, taker): the taker has a free valence and shares a neighbour with the giver."""
    numbers = atoms.numbers
    count = table.sum(axis=1)
    takers = [i for i, z in enumerate(numbers) if count[i] < SATURATED.get(int(z), 0)]
    found = []
    for hydrogen in np.flatnonzero(numbers == 1):
        giver = int(np.flatnonzero(table[hydrogen])[0])
        found += [
            (int(hydrogen), giver, taker)
            for taker in takers
            if taker != giver and not table[giver, taker] and (table[giver] & table[taker]).any()
        ]
    return found


def _shift(atoms: Atoms, rng: np.random.Generator) -> list[FloatArray]:
    """A hydrogen moved (1,3-shift, such as keto to enol) between relaxed ends, interpolated by pair distances (IDPP)."""
    table = bonds(atoms)
    options = _shifts(atoms, table)
    hydrogen, giver, taker = options[int(rng.integers(len(options)))]
    away = (atoms.positions[taker] - atoms.positions[table[taker]]).sum(axis=0) + rng.normal(0.0, 0.3, 3)
    length = covalent_radii[1] + covalent_radii[atoms.numbers[taker]]
    product = atoms.copy()
    product.positions[hydrogen] = atoms.positions[taker] + length * away / np.linalg.norm(away)
    product = relax(product, MOLECULAR)
    expected = table.copy()
    expected[hydrogen, giver] = expected[giver, hydrogen] = False
    expected[hydrogen, taker] = expected[taker, hydrogen] = True
    if (bonds(product) != expected).any():
        raise DemoFailure("rearranged")
    if not allowed_in_pretraining(product):
        raise DemoFailure("held_out")
    minimize_rotation_and_translation(atoms, product)
    images = [atoms.copy() for _ in range(FRAMES - 1)] + [product]
    NEB(images, method="improvedtangent").interpolate("idpp")
    return [image.positions.copy() for image in images]
