"""Units by name: what a label is multiplied by to arrive in this project's units (eV, Å)."""

from __future__ import annotations

from dataclasses import dataclass

from ase import units as _ase

from jmp_ds.errors import UserError

#: eV per unit of energy. Wavenumbers are not among them: they stay cm^-1 (see `unit`).
ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "keV": 1e3,
    "Ha": _ase.Hartree,
    "mHa": 1e-3 * _ase.Hartree,
    "Ry": _ase.Rydberg,
    "kcal/mol": _ase.kcal / _ase.mol,
    "kJ/mol": _ase.kJ / _ase.mol,
    "J/mol": 1e-3 * _ase.kJ / _ase.mol,
}
#: Å per unit of length.
LENGTH = {"Å": 1.0, "nm": 10.0, "pm": 0.01, "bohr": _ase.Bohr}
#: eV/Å³ per unit of pressure.
PRESSURE = {"eV/Å^3": 1.0, "GPa": _ase.GPa, "kbar": 0.1 * _ase.GPa, "bar": 1e-4 * _ase.GPa, "Pa": 1e-9 * _ase.GPa}

_SPELLINGS = {
    "ev": "eV",
    "mev": "meV",
    "hartree": "Ha",
    "ha": "Ha",
    "eh": "Ha",
    "au": "Ha",
    "mha": "mHa",
    "rydberg": "Ry",
    "ry": "Ry",
    "kcalmol^-1": "kcal/mol",
    "kcal_per_mol": "kcal/mol",
    "kjmol^-1": "kJ/mol",
    "kj/mol": "kJ/mol",
    "a": "Å",
    "ang": "Å",
    "angstrom": "Å",
    "a0": "bohr",
    "kb": "kbar",
    "ev/a^3": "eV/Å^3",
    "ev/å^3": "eV/Å^3",
    "ev/å³": "eV/Å^3",
    "ev/ang^3": "eV/Å^3",
    "1/cm": "cm^-1",
    "cm-1": "cm^-1",
}


@dataclass(frozen=True)
class Unit:
    """A unit as written by the user: `factor` turns its numbers into `name`."""

    name: str
    factor: float


def spell(text: str) -> str:
    """The one spelling of a unit's name that the tables here know; unknown names pass unchanged."""
    text = text.strip()
    known = {name.lower(): name for table in (ENERGY, LENGTH, PRESSURE) for name in table}
    return (known | _SPELLINGS).get(text.lower(), text)


def unit(text: str) -> Unit:
    """A unit by name: energies become eV, forces eV/Å, pressures eV/Å^3, lengths Å; others keep their name, factor 1.

    Wavenumbers (cm^-1) are kept: what is reported in them (phonon frequencies) is compared in them.
    """
    name = spell(text)
    if name in ENERGY:
        return Unit("eV", ENERGY[name])
    if name in PRESSURE:
        return Unit("eV/Å^3", PRESSURE[name])
    if name in LENGTH:
        return Unit("Å", LENGTH[name])
    energy, slash, length = name.rpartition("/")
    if slash and spell(energy) in ENERGY and spell(length) in LENGTH:
        return Unit("eV/Å", ENERGY[spell(energy)] / LENGTH[spell(length)])
    return Unit(name, 1.0)


#: Units that labels with a fixed meaning must arrive in.
REQUIRED = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}


@dataclass(frozen=True)
class LabelSpec:
    """One label the user names: `NAME=KEY:UNIT` reads `key` of the source as label `name`, in the given unit."""

    name: str
    key: str
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> LabelSpec:
        """From `NAME=KEY:UNIT` (the unit may be left out for a label without one; KEY may contain colons and blanks).

        Raises:
            UserError: not of this form, or energy, forces or stress without a unit of their kind.
        """
        name, equals, rest = text.partition("=")
        if not equals or not name.strip() or not rest.strip():
            raise UserError(f"label {text!r}: expected NAME=KEY:UNIT, for instance energy=E:kcal/mol")
        key, colon, written = rest.rpartition(":")
        if not colon:
            key, written = rest, ""
        spec = cls(name.strip(), key.strip(), unit(written))
        required = REQUIRED.get(spec.name)
        if required is not None and spec.unit.name != required:
            raise UserError(
                f"label {text!r}: {spec.name} needs a unit that converts to {required} after the last colon, "
                f"got {written!r}"
            )
        return spec
