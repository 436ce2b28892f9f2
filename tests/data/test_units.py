"""Units by name, and labels as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_ds.data.units import ENERGY, LENGTH, LabelSpec, unit
from jmp_ds.errors import UserError


@pytest.mark.parametrize(
    ("text", "name", "factor"),
    [
        ("eV", "eV", 1.0),
        ("meV", "eV", 1e-3),
        ("Hartree", "eV", 27.211386),
        ("kcal/mol", "eV", 1 / 23.0605478),
        ("kcalmol^-1", "eV", 1 / 23.0605478),
        ("kJ/mol", "eV", 1 / 96.4853321),
        ("Ry", "eV", 13.605693),
        ("kcal/mol/Å", "eV/Å", 1 / 23.0605478),
        ("Hartree/Bohr", "eV/Å", 51.422067),
        ("eV/A", "eV/Å", 1.0),
        ("GPa", "eV/Å^3", 1 / 160.2176634),
        ("kbar", "eV/Å^3", 1 / 1602.176634),
        ("bohr", "Å", 0.529177210),
        ("cm^-1", "cm^-1", 1.0),
        ("1/cm", "cm^-1", 1.0),
        ("D", "D", 1.0),
        ("", "", 1.0),
    ],
)
def test_known_units(text: str, name: str, factor: float) -> None:
    found = unit(text)
    assert found.name == name
    assert found.factor == pytest.approx(factor, rel=1e-7)


@given(energy=st.sampled_from(sorted(ENERGY)), length=st.sampled_from(sorted(LENGTH)))
def test_a_force_is_an_energy_per_length(energy: str, length: str) -> None:
    assert unit(f"{energy}/{length}").factor == ENERGY[energy] / LENGTH[length]


def test_labels_as_written() -> None:
    spec = LabelSpec.parse("peak=last phdos peak:cm^-1")
    assert (spec.name, spec.key, spec.unit.name) == ("peak", "last phdos peak", "cm^-1")
    assert LabelSpec.parse("n=n").unit.name == ""
    assert LabelSpec.parse("e=Eads_CO2/eV:meV").key == "Eads_CO2/eV"
    assert LabelSpec.parse("x=a:b:eV").key == "a:b"


@pytest.mark.parametrize(
    "text", ["energy", "=E:eV", "energy=", "energy=E", "energy=E:parsec", "forces=F:eV", "stress=S:eV"]
)
def test_labels_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UserError, match=text.split("=")[0] or "label"):
        LabelSpec.parse(text)
