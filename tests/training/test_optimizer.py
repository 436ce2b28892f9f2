"""Parameter groups by depth, on the real model's names."""

from __future__ import annotations

import pytest
import torch
from training_real import model
from training_toy import ToyModel

from jmp_ds.errors import UserError
from jmp_ds.training.optimizer import (
    LayerwiseRates,
    OptimizerOptions,
    adamw,
    clip_by_value_before_step,
    group_of,
    parameter_groups,
)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("backbone.embedding.weight", "embedding"),
        ("embedding.weight", "embedding"),
        ("backbone.int_blocks.0.trip_interaction.down.linear.weight", "blocks_0"),
        ("backbone.int_blocks.5.x.weight", "blocks_5"),
        ("backbone.out_blocks.0.x.weight", "blocks_0"),
        ("backbone.out_blocks.1.x.weight", "blocks_0"),
        ("backbone.out_blocks.6.x.weight", "blocks_5"),
        ("backbone.bases.edge_emb.weight", "rest"),
        ("backbone.out_mlp_E.layers.0.weight", "rest"),
        ("heads.t.energy.0.weight", "rest"),
    ],
)
def test_groups_by_name(name: str, group: str) -> None:
    assert group_of(name) == group


def test_every_parameter_of_the_real_model_is_in_one_group() -> None:
    network = model()
    groups = parameter_groups(network.named_parameters(), LayerwiseRates(embedding=0.3, blocks=(0.55, 0.4)))
    assert [(g.name, g.multiplier) for g in groups] == [
        ("embedding", 0.3),
        ("blocks_0", 0.55),
        ("blocks_1", 0.4),
        ("rest", 1.0),
    ]
    assert sorted(n for g in groups for n in g.names) == sorted(n for n, _ in network.named_parameters())
    assert {n.split(".")[2] for n in groups[1].names if ".out_blocks." in n} == {"0", "1"}
    assert len(parameter_groups(network.named_parameters())) == 1


def test_frozen_parameters_are_left_out() -> None:
    toy = ToyModel()
    toy.embedding.weight.requires_grad_(False)
    assert [g.name for g in parameter_groups(toy.named_parameters(), LayerwiseRates())] == [
        "blocks_0",
        "blocks_1",
        "rest",
    ]


def test_wrong_number_of_multipliers() -> None:
    with pytest.raises(UserError, match="3 multipliers in `blocks`, but the model has 2 blocks"):
        parameter_groups(ToyModel().named_parameters(), LayerwiseRates(blocks=(1.0, 2.0, 3.0)))


def test_adamw_and_clipping_by_value() -> None:
    toy = ToyModel()
    groups = parameter_groups(toy.named_parameters(), LayerwiseRates(embedding=0.5))
    optimizer = adamw(groups, OptimizerOptions(lr=0.1, weight_decay=0.2), torch.device("cpu"))
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.1, 0.1, 0.1]
    assert all((g["weight_decay"], g["betas"]) == (0.2, (0.9, 0.95)) for g in optimizer.param_groups)
    clip_by_value_before_step(optimizer, 0.25)
    toy.embedding.weight.grad = torch.full_like(toy.embedding.weight, -3.0)
    optimizer.step()
    assert torch.equal(toy.embedding.weight.grad, torch.full_like(toy.embedding.weight, -0.25))
