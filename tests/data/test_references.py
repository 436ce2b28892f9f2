"""References and normalisation against numpy's least squares on the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jmp_ds.data.record import Record
from jmp_ds.data.references import (
    fit_statistics,
    load_statistics,
    normalization,
    save_statistics,
)
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.tasks.specs import Normalization


def a_store(path: Path, compositions: list[list[int]], energy: np.ndarray, extra: bool = True) -> Store:
    rng = np.random.default_rng(0)
    with StoreWriter(path, {}, shard_size=1000) as writer:
        for i, (numbers, e) in enumerate(zip(compositions, energy, strict=True)):
            n = len(numbers)
            labels = {"energy": np.array(e), "forces": rng.normal(size=(n, 3)) * 0.5}
            if extra and i % 3 == 0:
                labels |= {"gap": np.array(rng.normal() + 5.0), "stress": rng.normal(size=6) + 0.01}
            writer.append(
                [
                    Record(
                        pos=rng.normal(size=(n, 3)),
                        atomic_numbers=np.array(numbers, dtype=np.uint8),
                        cell=np.eye(3),
                        pbc=np.zeros(3, bool),
                        labels=labels,
                        tags=np.full(n, 2, np.uint8),
                        fixed=np.zeros(n, bool),
                        id=str(i),
                    )
                ]
            )
    return Store(path)


def many(count: int, noise: float, seed: int = 1) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Random organic compositions with total energies of all-electron size."""
    rng = np.random.default_rng(seed)
    true = np.zeros(119)
    true[[1, 6, 7, 8, 17]] = [-13.6, -1035.0, -1488.0, -2042.0, -12516.0]
    compositions = [
        [1] * int(rng.integers(0, 12)) + rng.choice([6, 7, 8], int(rng.integers(1, 9))).tolist() for _ in range(count)
    ]
    compositions[-1].append(17)  # one element that occurs once
    energy = np.array([true[c].sum() for c in compositions]) + noise * rng.normal(size=count)
    return compositions, energy, true


def matrix(compositions: list[list[int]]) -> np.ndarray:
    return np.stack([np.bincount(c, minlength=119) for c in compositions]).astype(float)


def test_equals_lstsq_over_many_blocks(tmp_path: Path) -> None:
    compositions, energy, true = many(3000, noise=0.3)
    store = a_store(tmp_path / "s", compositions, energy)
    label = fit_statistics(store).labels["energy"]
    c = matrix(compositions)
    expected = np.linalg.lstsq(c, energy, rcond=None)[0]
    assert np.allclose(label.references, expected, rtol=0, atol=1e-6)
    assert np.allclose(np.array(label.references)[[1, 6, 7, 8]], true[[1, 6, 7, 8]], atol=0.05)
    rest = energy - c @ expected
    assert label.mean == pytest.approx(rest.mean(), abs=1e-8)
    assert label.std == pytest.approx(rest.std(), rel=1e-8)
    assert (label.minimum, label.maximum, label.count) == (energy.min(), energy.max(), 3000)
    absent = [z for z in range(119) if z not in (1, 6, 7, 8, 17)]
    assert not np.array(label.references)[absent].any()


def test_exact_references_leave_nothing(tmp_path: Path) -> None:
    compositions, energy, true = many(2500, noise=0.0)
    label = fit_statistics(a_store(tmp_path / "s", compositions, energy)).labels["energy"]
    assert np.allclose(label.references, true, rtol=0, atol=1e-7)
    assert label.std < 1e-7


def test_one_composition_takes_the_least_norm(tmp_path: Path) -> None:
    energy = -17_000.0 + np.random.default_rng(2).normal(size=50)
    aspirin = [6] * 9 + [1] * 8 + [8] * 4
    label = fit_statistics(a_store(tmp_path / "s", [aspirin] * 50, energy)).labels["energy"]
    expected = np.linalg.lstsq(matrix([aspirin] * 50), energy, rcond=None)[0]
    assert np.allclose(label.references, expected, rtol=1e-12)
    assert label.mean == pytest.approx(0.0, abs=1e-9)
    assert label.std == pytest.approx(energy.std(), rel=1e-9)


def test_smallest_change_from_given_references(tmp_path: Path) -> None:
    base = np.zeros(90)
    base[[1, 6, 8, 78]] = [-3.0, -8.0, -6.0, -5.5]
    energy = np.full(4, -400.0)
    water = [8, 1, 1]
    label = fit_statistics(a_store(tmp_path / "s", [water] * 4, energy), base_references={"energy": base}).labels[
        "energy"
    ]
    c = matrix([water])[0]
    padded = np.concatenate([base, np.zeros(29)])
    expected = padded + c * (-400.0 - c @ padded) / (c @ c)
    assert np.allclose(label.references, expected, rtol=1e-12)
    assert label.references[78] == -5.5  # not in the data: as it was
    assert label.references[6] == -8.0


def test_other_labels_and_normalisation(tmp_path: Path) -> None:
    compositions, energy, _ = many(1500, noise=0.1)
    store = a_store(tmp_path / "s", compositions, energy)
    statistics = fit_statistics(store)
    forces = np.concatenate([r.labels["forces"].ravel() for r in store])
    gap = np.array([r.labels["gap"] for r in store if "gap" in r.labels])
    assert statistics.labels["forces"].rms == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
    assert statistics.labels["forces"].values == forces.size
    assert statistics.labels["gap"].count == len(gap) == 500
    assert statistics.labels["gap"].mean == pytest.approx(gap.mean(), rel=1e-12)
    assert statistics.labels["gap"].std == pytest.approx(gap.std(), rel=1e-12)
    assert statistics.elements == {
        int(z): int(n)
        for z, n in zip(*np.unique(np.concatenate([r.atomic_numbers for r in store]), return_counts=True), strict=True)
    }
    made = normalization(statistics, ["energy", "forces", "gap", "stress"])
    assert made["forces"]["mean"] == 0.0
    assert made["forces"]["std"] == statistics.labels["forces"].rms
    assert made["gap"]["mean"] == statistics.labels["gap"].mean
    assert made["stress"]["mean"] == statistics.labels["stress"].mean
    assert made["gap"]["references"] == ()
    assert len(made["energy"]["references"]) == 119
    shared = normalization(statistics, ["energy", "forces"], gradient_forces=True)
    assert shared["energy"]["std"] == shared["forces"]["std"] == made["forces"]["std"]
    assert shared["energy"]["references"] == made["energy"]["references"]
    for values in made.values():
        Normalization(**values)
    with pytest.raises(UserError, match="'charge'"):
        normalization(statistics, ["charge"])


def test_a_label_that_does_not_vary_is_scaled_by_one(tmp_path: Path) -> None:
    statistics = fit_statistics(a_store(tmp_path / "s", [[1, 1]] * 3, np.full(3, -31.7), extra=False))
    assert normalization(statistics, ["energy"])["energy"]["std"] == 1.0


def test_subset(tmp_path: Path) -> None:
    compositions, energy, _ = many(100, noise=1.0)
    store = a_store(tmp_path / "s", compositions, energy)
    chosen = np.array([5, 3, 50, 80, 81])
    statistics = fit_statistics(store, chosen)
    assert statistics.structures == 5
    expected = np.linalg.lstsq(matrix([compositions[i] for i in chosen]), energy[chosen], rcond=None)[0]
    assert np.allclose(statistics.labels["energy"].references, expected, atol=1e-6)


def test_kept_with_the_store(tmp_path: Path) -> None:
    compositions, energy, _ = many(20, noise=1.0)
    store = a_store(tmp_path / "s", compositions, energy)
    assert load_statistics(store) is None
    statistics = fit_statistics(store)
    save_statistics(store, statistics)
    assert load_statistics(Store(tmp_path / "s")) == statistics
    other = a_store(tmp_path / "t", compositions[::-1], energy)
    (tmp_path / "t" / "statistics.json").write_text((tmp_path / "s" / "statistics.json").read_text())
    assert load_statistics(other) is None


def test_mistakes(tmp_path: Path) -> None:
    compositions, energy, _ = many(5, noise=1.0)
    store = a_store(tmp_path / "s", compositions, energy)
    with pytest.raises(UserError, match="no structures"):
        fit_statistics(store, np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="'forces' is not one number"):
        fit_statistics(store, referenced=["forces"])
    with pytest.raises(UserError, match="finite"):
        fit_statistics(store, base_references={"energy": [0.0, np.nan]})
