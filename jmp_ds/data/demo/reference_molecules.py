"""The two molecules of the dynamics sets, at minima of GFN2-xTB (coordinates computed for this package, Å)."""

from __future__ import annotations

from ase import Atoms

_MALONALDEHYDE = (
    ("O", -1.2513, 1.2209, 0.0000),
    ("C", -1.1536, -0.0860, 0.0000),
    ("C", 0.0211, -0.7658, 0.0000),
    ("C", 1.2604, -0.0429, 0.0000),
    ("O", 1.3462, 1.1796, 0.0000),
    ("H", -0.3218, 1.5886, 0.0000),
    ("H", -2.1111, -0.5967, 0.0000),
    ("H", 0.0347, -1.8409, 0.0000),
    ("H", 2.1754, -0.6568, 0.0000),
)

_DIPEPTIDE = (
    ("O", 1.2550, -0.4154, 1.6481),
    ("C", 1.6430, 0.2003, 0.6703),
    ("N", 0.8038, 0.8855, -0.1311),
    ("C", 3.0940, 0.2769, 0.2525),
    ("H", 1.1497, 1.3068, -0.9785),
    ("H", 3.4366, 1.3093, 0.2813),
    ("H", 3.2124, -0.1018, -0.7605),
    ("H", 3.6965, -0.3190, 0.9315),
    ("C", -0.6282, 0.9786, 0.1064),
    ("C", -1.1876, 2.2213, -0.5651),
    ("H", -0.7717, 1.0211, 1.1927),
    ("H", -2.2377, 2.3297, -0.3111),
    ("H", -1.1142, 2.1204, -1.6454),
    ("H", -0.6493, 3.1092, -0.2421),
    ("O", -1.9815, -0.3098, -1.4455),
    ("C", -1.3241, -0.2958, -0.4256),
    ("N", -1.1105, -1.3597, 0.3640),
    ("H", -0.4598, -1.2647, 1.1373),
    ("C", -1.6074, -2.6755, 0.0455),
    ("H", -2.1901, -3.0700, 0.8792),
    ("H", -2.2440, -2.5868, -0.8336),
    ("H", -0.7848, -3.3605, -0.1704),
)


def _atoms(rows: tuple[tuple[str, float, float, float], ...]) -> Atoms:
    return Atoms([row[0] for row in rows], [row[1:] for row in rows])


def malonaldehyde() -> Atoms:
    """Malonaldehyde, C3H4O2, as the enol with its intramolecular hydrogen bond; 9 atoms."""
    return _atoms(_MALONALDEHYDE)


def dipeptide() -> Atoms:
    """Alanine dipeptide (N-acetyl-L-alanine methylamide), C6H12N2O2, with its internal hydrogen bond; 22 atoms."""
    return _atoms(_DIPEPTIDE)
