"""Published checkpoints: from the names and tensors of a Lightning file to ours (specification sections 7, 8 and 9.2).

The only place that knows published key names, and the only one where a scale factor of exactly zero means one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jmp_ds.errors import UserError

Weights = Literal["ema", "raw", "published"]

#: Constants of the radial grid and counters of training metrics: nothing that a model learns.
_CONSTANTS = re.compile(r"\.rbf\.(offset|temps)$|^task_steps\.")
#: The published output block registers one list of layers under two names.
_ALIAS, _ALIASED = ".seq_energy_pre.", ".layers."
_SCALE = ".scale_factor"


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        weights: which weights were taken.
        tensors: how many tensors of the model were filled.
        unmatched: keys of the file that the model has no use for; constants and aliases are not among them.
        zero_factors: scale factors that were zero in the file, where the published network does nothing, and are now one.
        differing_aliases: tensors that the file holds under two names with two contents.
    """

    weights: Weights
    tensors: int
    unmatched: tuple[str, ...]
    zero_factors: tuple[str, ...]
    differing_aliases: tuple[str, ...]


def import_state(
    checkpoint: Any, expected: Mapping[str, torch.Size], tasks: Sequence[str], weights: Weights = "ema"
) -> tuple[dict[str, Tensor], ImportReport]:
    """Tensors for a `MultiTaskModel` from the content of a published checkpoint.

    Args:
        checkpoint: what the file holds: `state_dict`, and for EMA weights `optimizer_states[0]["ema"]`.
        expected: name and shape of everything in the model's state.
        tasks: names for the file's heads, in the file's order; one name for a fine-tuned model.
        weights: `ema`, `raw`, or `published`: the mixture with which published fine-tuning started, EMA weights except for
            the atom layers of the output blocks, which are raw (specification section 8).

    Raises:
        UserError: no such weights in the file, or tensors that the model needs are missing or have another shape; they
            are named.
    """
    if weights not in get_args(Weights):
        raise UserError(f"no weights {weights!r}; the choices are {', '.join(get_args(Weights))}")
    raw = _state_dict(checkpoint)
    chosen = raw if weights == "raw" else {**raw, **_averages(checkpoint, raw, weights)}
    state: dict[str, Tensor] = {}
    unmatched = []
    for key in raw:
        name = our_name(key, tasks)
        if name is None or (name and name not in expected):
            unmatched.append(key)
        elif name and not (_ALIAS in key and weights == "ema"):
            # the second name comes later and wins, as it does when the published code loads a state
            source = raw if weights == "published" and _is_output_layer(key) else chosen
            tensor = source[key].detach()
            state[name] = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    _check(state, expected, unmatched)
    zero = tuple(name for name, x in state.items() if name.endswith(_SCALE) and float(x) == 0.0)
    state |= {name: torch.ones(()) for name in zero}
    return state, ImportReport(weights, len(state), tuple(unmatched), zero, _differing_aliases(raw))


def size_of(checkpoint: Any) -> tuple[int, int] | None:
    """Interaction blocks and width of edges of the network in a published file; None where it does not tell them."""
    state = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        return None
    blocks = {found[1] for key in state if (found := re.match(r"backbone\.int_blocks\.(\d+)\.", str(key)))}
    edges = state.get("backbone.bases.edge_emb.dense.linear.weight")
    return (len(blocks), len(edges)) if blocks and isinstance(edges, Tensor) and edges.dim() == 2 else None


def our_name(key: str, tasks: Sequence[str]) -> str | None:
    """Our name of a published key: empty for constants that we do not keep, None where the key means nothing to us."""
    if _CONSTANTS.search(key):
        return ""
    if key in ("embedding.atom_embedding.weight", "embedding.weight"):
        return "backbone.embedding.weight"
    if key.startswith("backbone."):
        return key.replace(_ALIAS, _ALIASED)
    if found := re.fullmatch(r"output\.out_(energy|forces)\.(\d+)\.(\d+\.\w+)", key):
        label, number, rest = found.groups()
        return f"heads.{tasks[int(number)]}.{label}.{rest}" if int(number) < len(tasks) else None
    if found := re.fullmatch(r"out_(energy|forces)\.(\d+\.\w+)", key):
        label, rest = found.groups()
        return f"heads.{tasks[0]}.{label}.{rest}"
    if found := re.fullmatch(r"graph_outputs\._module_dict\.ft_mlp_(\w+)\.out_mlp\.(\d+\.\w+)", key):
        label, rest = found.groups()
        return f"heads.{tasks[0]}.{label}.{rest}"
    return None


def parameter_keys(keys: Sequence[str]) -> list[str]:
    """Those published keys that the optimizer knows, in its order, which is the order of the EMA tensors."""
    return [k for k in keys if not (_CONSTANTS.search(k) or _ALIAS in k or k.endswith(_SCALE))]


def _is_output_layer(key: str) -> bool:
    """Whether a key belongs to the layers that are registered twice."""
    return re.match(r"backbone\.out_blocks\.\d+\.(layers|seq_energy_pre)\.", key) is not None


def _state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of the file by published name."""
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        found = f"; it has {', '.join(map(str, list(checkpoint)[:8]))}" if isinstance(checkpoint, Mapping) else ""
        raise UserError(f"not a Lightning checkpoint: no state_dict in it{found}")
    wrong = [str(k) for k, x in checkpoint["state_dict"].items() if not isinstance(x, Tensor)]
    if wrong:
        raise UserError(f"state_dict has entries that are no tensors: {', '.join(wrong)}")
    return {str(k): x for k, x in checkpoint["state_dict"].items()}


def _averages(checkpoint: Mapping[str, Any], raw: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """The moving averages by published name."""
    try:
        averages = list(checkpoint["optimizer_states"][0]["ema"])
    except (KeyError, IndexError, TypeError):
        raise UserError(
            f"the file has no moving averages (optimizer_states[0]['ema']), which weights `{weights}` need; "
            "the choices are ema, raw and published, and of these only `raw` does without"
        ) from None
    keys = parameter_keys(list(raw))
    if len(averages) != len(keys):
        raise UserError(f"the file has {len(averages)} moving averages for {len(keys)} parameters; `raw` does without")
    for key, average in zip(keys, averages, strict=True):
        if not isinstance(average, Tensor) or average.shape != raw[key].shape:
            raise UserError(f"the moving averages do not fit the parameters: first at {key}; `raw` does without")
    return dict(zip(keys, averages, strict=True))


def _check(state: dict[str, Tensor], expected: Mapping[str, torch.Size], unmatched: Sequence[str]) -> None:
    """Refuse a state that does not fill the model, naming what is concerned (of wrong shapes, the first few)."""
    missing = [name for name in expected if name not in state]
    shapes = [
        f"{name} (file {tuple(x.shape)}, model {tuple(expected[name])})"
        for name, x in state.items()
        if x.shape != expected[name]
    ]
    if not missing and not shapes:
        return
    parts = ["the file does not fit this model; is it of another size?"]
    for what, names, shown in (
        ("missing", missing, len(missing)),
        ("of another shape", shapes, 5),
        ("in the file only", unmatched, len(unmatched)),
    ):
        if names:
            parts.append(f"{len(names)} {what}: {', '.join(names[:shown])}{', …' if len(names) > shown else ''}")
    raise UserError("; ".join(parts))


def _differing_aliases(raw: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Tensors stored under both names that are not the same."""
    pairs = ((key, key.replace(_ALIAS, _ALIASED)) for key in raw if _ALIAS in key)
    return tuple(second for first, second in pairs if second in raw and not torch.equal(raw[first], raw[second]))
