"""How far a step in less than float32 is from the same step in float32."""

from __future__ import annotations

import statistics

from torch import Tensor

from jmp_ds.bench.step import TrainingStep


def deviation_from_float32(step: TrainingStep) -> dict[str, float]:
    """Loss and gradients of a step in its own precision against float32, same weights and batch.

    Returns:
        `loss_relative`: |difference| over the loss. `gradient_median`, `gradient_p90`: over the model's parameters, norm
        of the difference over the norm in float32 (parameters whose gradient is zero are left out).
    """
    ready = step.build()
    loss, own = _gradients(step, step.loss(ready))
    reference_loss, reference = _gradients(step, step.loss(ready, reduced=False))
    errors = sorted(float((own[k] - g).norm() / g.norm()) for k, g in reference.items() if float(g.norm()) > 0.0)
    return {
        "loss_relative": abs(loss - reference_loss) / abs(reference_loss),
        "gradient_median": statistics.median(errors),
        "gradient_p90": errors[int(0.9 * (len(errors) - 1))],
    }


def _gradients(step: TrainingStep, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    step.forget()
    loss.backward()
    gradients = {k: p.grad.clone() for k, p in step.model.named_parameters() if p.grad is not None}
    step.forget()
    return float(loss.detach()), gradients
