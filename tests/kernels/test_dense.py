"""Dense layers with hand-written derivatives against plain autograd in float64, and what they keep and refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from checks import TOLERANCE, assert_close, compare, random_tensor
from jmp_kernels import DenseOnce, DenseTwice, products
from jmp_kernels.activation import activation
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

R, ROWS = 9, torch.tensor([0, 2, 3, 7])


def act(p: Tensor) -> Tensor:
    return F.silu(p) / 0.6


def residual(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (x + act(act(x @ first.T) @ second.T)) / 2**0.5


def outer(x: Tensor, table: Tensor) -> Tensor:
    """Read-outs [R, K, C] of messages and a table, as triplets and quadruplets make them."""
    return (table[:, :, None] * x[:, None]).square()


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name: of the method.
        run: takes the dense operators and the tensors.
        plain: the same in plain PyTorch.
        shapes: of the tensors; None stands for the number of rows.
        features: how many of the tensors, from the first on, are features; the others are weights.
    """

    name: str
    run: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    shapes: tuple[tuple[int | None, ...], ...]
    features: int


def _merged(ops: Any, x: Tensor, y: Tensor, z: Tensor, w: Tensor, wy: Tensor, wz: Tensor) -> Tensor:
    rows = ROWS if x.shape[0] else ROWS[:0]
    return ops.merge(x, w, [(y, wy, None), (z[: rows.shape[0]], wz, rows)])


def _plain_merge(x: Tensor, y: Tensor, z: Tensor, w: Tensor, wy: Tensor, wz: Tensor) -> Tensor:
    rows = ROWS if x.shape[0] else ROWS[:0]
    other = torch.zeros(x.shape[0], w.shape[0], dtype=x.dtype).index_add(0, rows, act(z[: rows.shape[0]] @ wz.T))
    return (act(x @ w.T) + (act(y @ wy.T) + other) / 2**0.5) / 2


CASES = [
    Case("linear", lambda o, x, w: o.linear(x, w), lambda x, w: x @ w.T, ((None, 5), (7, 5)), 1),
    Case("dense", lambda o, x, w: o.dense(x, w), lambda x, w: act(x @ w.T), ((None, 5), (7, 5)), 1),
    Case(
        "added_dense",
        lambda o, x, t, w: o.added_dense(x, w, t),
        lambda x, t, w: act(x @ w.T + t),
        ((None, 5), (None, 7), (7, 5)),
        2,
    ),
    Case("no residuals", lambda o, x: o.residuals(x, []) * 1.0, lambda x: x * 1.0, ((None, 6),), 1),
    Case(
        "residuals",
        lambda o, x, a, b, c, d: o.residuals(x, [(a, b), (c, d)]),
        lambda x, a, b, c, d: residual(residual(x, a, b), c, d),
        ((None, 6), (6, 6), (6, 6), (6, 6), (6, 6)),
        1,
    ),
    Case(
        "gate",
        lambda o, x, rad, g: o.gate(x, rad, g),
        lambda x, rad, g: x * (rad @ g.T),
        ((None, 6), (None, 3), (6, 3)),
        2,
    ),
    Case(
        "gated_down",
        lambda o, x, rad, w, g, d: o.gated_down(x, w, rad, g, d),
        lambda x, rad, w, g, d: act((act(x @ w.T) * (rad @ g.T)) @ d.T),
        ((None, 5), (None, 3), (6, 5), (6, 3), (4, 6)),
        2,
    ),
    Case("merge", _merged, _plain_merge, ((None, 5), (None, 3), (None, 4), (6, 5), (6, 3), (6, 4)), 3),
    Case(
        "gated_concat",
        lambda o, x, y, rad, g, h, w: o.gated_concat([x, y], rad, [g, h], w),
        lambda x, y, rad, g, h, w: act(torch.cat([x * (rad @ g.T), y * (rad @ h.T)], dim=1) @ w.T),
        ((None, 5), (None, 5), (None, 3), (5, 3), (5, 3), (7, 10)),
        3,
    ),
    Case(
        "layers",
        lambda o, x, a, b, c: o.layers(x, [(a, b), (c, None)]),
        lambda x, a, b, c: act(act(x @ a.T + b) @ c.T),
        ((None, 5), (6, 5), (6,), (4, 6)),
        1,
    ),
    Case(
        "contracted",
        lambda o, x, table, w: o.contracted(outer, (x, table), w, x.dtype),
        lambda x, table, w: outer(x, table).flatten(1) @ w.T,
        ((None, 4), (None, 3), (5, 12)),
        2,
    ),
]
FORMS = [DenseOnce, DenseTwice]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
every_form = pytest.mark.parametrize("form", FORMS)


def tensors_of(case: Case, dtype: torch.dtype = torch.float64, rows: int = R) -> list[Tensor]:
    shapes = [tuple(rows if n is None else n for n in shape) for shape in case.shapes]
    return [random_tensor(*shape, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]


@every_form
@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_output_and_every_gradient(form: type, case: Case, dtype: torch.dtype) -> None:
    """bfloat16 rounds after every layer and at every gradient: a few units in the last place."""
    tolerance = {torch.float64: 1e-13, torch.float32: TOLERANCE[torch.float32], torch.bfloat16: 2e-2}[dtype]
    names = [f"tensor {k}" for k in range(len(case.shapes))]
    compare(lambda *t: case.run(form, *t), case.plain, tensors_of(case, dtype), tolerance, names)


@every_form
@every_case
def test_weights_may_be_wider_than_features(form: type, case: Case) -> None:
    """Mixed precision: float32 weights get float32 gradients, features stay in bfloat16."""
    narrow, wide = tensors_of(case, torch.bfloat16), tensors_of(case, torch.float32)
    leaves = [x.requires_grad_() for x in narrow[: case.features] + wide[case.features :]]
    result = case.run(form, *leaves)
    assert result.dtype == torch.bfloat16
    for leaf, gradient in zip(leaves, torch.autograd.grad(result.float().square().sum(), leaves), strict=True):
        assert gradient.dtype == leaf.dtype


@every_form
@every_case
def test_no_rows(form: type, case: Case) -> None:
    leaves = [t.requires_grad_() for t in tensors_of(case, torch.float32, rows=0)]
    result = case.run(form, *leaves)
    assert result.shape == case.plain(*leaves).shape
    for leaf, gradient in zip(leaves, torch.autograd.grad(result.sum(), leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert not bool(gradient.any())


@every_case
def test_first_derivatives_by_differences(case: Case) -> None:
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    assert torch.autograd.gradcheck(lambda *t: case.run(DenseOnce, *t), leaves, fast_mode=True)


@every_case
def test_second_derivatives_by_differences(case: Case) -> None:
    """By features, as forces need them; weights are constants then."""
    tensors = tensors_of(case)
    features = [t.requires_grad_() for t in tensors[: case.features]]

    def operation(*x: Tensor) -> Tensor:
        return case.run(DenseTwice, *x, *tensors[case.features :])

    assert torch.autograd.gradcheck(operation, features, fast_mode=True)
    assert torch.autograd.gradgradcheck(operation, features, fast_mode=True)


@every_case
def test_weights_learn_from_gradients(case: Case) -> None:
    """As training on gradient forces does: the derivative by all of a function of the derivative by features."""
    results = []
    for function in (lambda *t: case.run(DenseTwice, *t), case.plain):
        leaves = [t.requires_grad_() for t in tensors_of(case)]
        energy = function(*leaves).square().sum()
        forces = torch.autograd.grad(energy, leaves[: case.features], create_graph=True)
        loss = energy + torch.stack([(f * f).sum() for f in forces]).sum()
        results.append(torch.autograd.grad(loss, leaves))
    for k, (mine, plain) in enumerate(zip(*results, strict=True)):
        assert_close(f"tensor {k}", mine, plain, 1e-12)


LEARNING = [case for case in CASES if len(case.shapes) > case.features]


@pytest.mark.parametrize("case", LEARNING, ids=lambda case: case.name)
def test_gradients_of_weights_are_not_differentiated_again(case: Case) -> None:
    """An error, never a wrong number."""
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    energy = case.run(DenseTwice, *leaves).square().sum()
    with pytest.raises(RuntimeError, match="gradients of weights cannot be differentiated again"):
        torch.autograd.grad(energy, leaves, create_graph=True)


@pytest.mark.parametrize("case", LEARNING, ids=lambda case: case.name)
def test_once_means_once(case: Case) -> None:
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    (gradient,) = torch.autograd.grad(case.run(DenseOnce, *leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def kept_by(work: Callable[[], Tensor], weights: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Shapes of what autograd keeps, each storage once, weights aside."""
    ours, kept = {w.untyped_storage().data_ptr() for w in weights}, {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in ours:
            kept[x.untyped_storage().data_ptr()] = tuple(x.shape)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = work()
    del result
    return sorted(kept.values())


def test_residuals_keep_pre_activations_only() -> None:
    """The input and two tensors per layer; plain autograd keeps seven per layer."""
    x, *weights = (random_tensor(*s, seed=k, grad=True) for k, s in enumerate([(R, 6)] + 6 * [(6, 6)]))
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    assert kept_by(lambda: DenseOnce.residuals(x, pairs), weights) == [(R, 6)] * (1 + 2 * 3)
    assert len(kept_by(lambda: DenseTwice.residuals(x, pairs), weights)) > 1 + 2 * 3


def test_read_outs_are_not_kept() -> None:
    """Only what they are made of."""
    x, table = random_tensor(R, 4, grad=True), random_tensor(R, 3, seed=1, grad=True)
    w = random_tensor(5, 12, seed=2, grad=True)
    assert kept_by(lambda: DenseOnce.contracted(outer, (x, table), w, x.dtype), [w]) == [(R, 3), (R, 4)]
    assert (R, 3, 4) in kept_by(lambda: DenseTwice.contracted(outer, (x, table), w, x.dtype), [w])


def test_gates_and_up_projections_are_not_kept() -> None:
    """Two wide tensors are: the input and the one pre-activation that it leads to."""
    case = next(case for case in CASES if case.name == "merge")
    leaves = [t.requires_grad_() for t in tensors_of(case)]
    rows = [ROWS, *leaves[3:]]
    narrow = [(4, 4), (R, 3)]
    assert kept_by(lambda: case.run(DenseOnce, *leaves), rows) == sorted([*narrow, (R, 5), (R, 6)])


class TestActivation:
    """SiLU(x)/0.6."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_value_and_gradient(self, dtype: torch.dtype) -> None:
        compare(activation, act, [random_tensor(7, 5, dtype=dtype)], TOLERANCE[dtype], ["p"])

    def test_derivatives_of_any_order(self) -> None:
        p = random_tensor(4, 3, grad=True)
        assert torch.autograd.gradgradcheck(activation, (p,))
        mine, plain = activation(p), act(p)
        for order in range(1, 5):
            (mine,) = torch.autograd.grad(mine.sum(), p, create_graph=True)
            (plain,) = torch.autograd.grad(plain.sum(), p, create_graph=True)
            assert_close(f"derivative {order}", mine, plain, 1e-12)

    def test_the_second_derivative_recorded_or_not(self) -> None:
        """Two formulas for one number: in place where nobody differentiates again, out of place otherwise."""
        p = random_tensor(6, 3, grad=True)
        found = []
        for recorded in (False, True):
            (first,) = torch.autograd.grad(activation(p).sum(), p, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), p, create_graph=recorded)
            found.append(second.detach())
        assert_close("second derivative", found[0], found[1], 1e-14)

    def test_it_keeps_its_argument_only(self) -> None:
        p = random_tensor(7, 5, grad=True)
        assert kept_by(lambda: activation(p * 1.0), []) == [(7, 5)]


#: What a product is, by name; operands x [R, in], w [out, in], dy [R, out], a factor or term [R, out].
PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "nt": lambda x, w, dy, f: x @ w.T,
    "nt_times": lambda x, w, dy, f: (x @ w.T) * f,
    "nt_plus": lambda x, w, dy, f: x @ w.T + f,
    "nn": lambda x, w, dy, f: dy @ w,
    "tn": lambda x, w, dy, f: dy.T @ x,
}


def product(name: str, x: Tensor, w: Tensor, dy: Tensor, f: Tensor) -> Tensor:
    arguments = {"nt": (x, w), "nt_times": (x, w, f), "nt_plus": (x, w, f), "nn": (dy, w), "tn": (dy, x)}
    return getattr(products, name)(*arguments[name])


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("rows", [0, 1, 33, 64, 70, 300, 404, 1000, 2500])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["rows first", "columns first"])
def test_products(name: str, rows: int, dtype: torch.dtype, layout: str) -> None:
    shapes = ((rows, 20), (17, 20), (rows, 17), (rows, 17))
    operands = [random_tensor(*shape, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]
    if layout == "columns first":
        operands = [x.t().contiguous().t() for x in operands]
    before = [x.clone() for x in operands]
    result = product(name, *operands)
    assert result.dtype == dtype
    assert_close(name, result, PRODUCTS[name](*(x.double() for x in operands)))
    assert all(torch.equal(x, y) for x, y in zip(operands, before, strict=True))


@pytest.mark.parametrize("total", [1, 127, 128, 129, 255, 256, 800, 1000, 1024, 1025, 2047, 2048, 5000, 12345])
def test_pieces(total: int) -> None:
    found = products.pieces(total)
    assert {size for _, size in found} <= set(products.PIECES)
    assert [row for start, size in found for row in range(start, start + size)][:total] == list(range(total))
    assert sum(size for _, size in found) < total + max(total // 7, products.PIECES[-1])
    assert len(found) == 1 or max(size for _, size in found) <= total


#: Resident memory (MB) that 150 new numbers of rows leave behind, after the first products.
GROWTH = """
import sys, torch
from jmp_kernels import products

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def step(rows):
    x, w, dy = big[:rows], torch.ones(64, 64, dtype=dtype), big[:rows]
    products.nt(x, w), products.nn(dy, w), products.tn(dy, x)

torch.set_num_threads(1)
dtype = getattr(torch, sys.argv[1])
big = torch.ones(4096, 64, dtype=dtype)
for rows in range(3000, 2000, -20):
    step(rows)
before = megabytes()
for rows in range(2999, 2700, -2):
    step(rows)
print(megabytes() - before)
"""


@pytest.mark.skipif(not products.ONEDNN, reason="needs a PyTorch with oneDNN")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_numbers_of_rows_leave_no_code_behind(dtype: str) -> None:
    run = subprocess.run([sys.executable, "-c", GROWTH, dtype], capture_output=True, text=True, check=True, timeout=120)
    assert float(run.stdout) < 10
