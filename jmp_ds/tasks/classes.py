"""Classification: cross-entropy, and what is counted so that ranks can be added up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from jmp_ds.tasks.specs import ClassTarget

#: Scores are sorted into so many bins between ∓`LARGEST` for the area under the ROC curve; two of one bin count as equal.
BINS, LARGEST = 4096, 16.0


def cross_entropy(logits: Tensor, numbers: Tensor, target: ClassTarget, *, weighted: bool = True) -> Tensor:
    """Cross-entropy of every row, times the weight of its class.

    Args:
        logits: [R] for one logit, else [R, classes]; float32 at least.
        numbers: int64 [R], the class of every row.
        target: what is classified.
        weighted: whether classes have their weights.

    Returns:
        [R], in the dtype of the logits.
    """
    weights = logits.new_tensor(target.class_weights) if weighted and target.class_weights else None
    if target.kind == "multi":
        return functional.cross_entropy(logits, numbers, weight=weights, reduction="none")
    own = functional.binary_cross_entropy_with_logits(logits, numbers.to(logits.dtype), reduction="none")
    return own if weights is None else own * weights.index_select(0, numbers)


def chosen(logits: Tensor, target: ClassTarget) -> Tensor:
    """The most probable class of every row, int64 [R]."""
    return (logits > 0).long() if target.kind == "binary" else logits.argmax(-1)


def probabilities(logits: Tensor, target: ClassTarget) -> Tensor:
    """Of every class, [R, classes]."""
    if target.kind == "multi":
        return logits.softmax(-1)
    return torch.stack((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=-1)


def hits_by_class(logits: Tensor, numbers: Tensor, there: Tensor, target: ClassTarget) -> Tensor:
    """Float64 [2, classes]: rows that were told right, and rows there are, by their true class."""
    weights = torch.stack(((chosen(logits, target) == numbers) & there, there)).double()
    return weights.new_zeros(2, target.classes).index_add(1, numbers, weights)


def scores_by_class(logits: Tensor, numbers: Tensor, there: Tensor, target: ClassTarget) -> Tensor:
    """Float64 [2, BINS]: how many rows of class 0 and of class 1 have a score in every bin, lowest first."""
    score = logits.double() if target.kind == "binary" else (logits[:, 1] - logits[:, 0]).double()
    bins = ((score.clamp(-LARGEST, LARGEST) + LARGEST) * ((BINS - 1) / (2.0 * LARGEST))).round().long()
    weights = torch.stack((there & (numbers == 0), there & (numbers == 1))).double()
    return weights.new_zeros(2, BINS).index_add(1, bins, weights)


def balanced_accuracy(hits: Tensor) -> float | None:
    """Mean over the classes that occur of the share that was told right, from `hits_by_class`; None without rows."""
    known = hits[1] > 0
    return float((hits[0][known] / hits[1][known]).mean()) if bool(known.any()) else None


def roc_auc(scores: Tensor) -> float | None:
    """Area under the ROC curve from `scores_by_class`: the chance that a row of class 1 scores above one of class 0.

    None unless both classes occur.
    """
    zeros, ones = scores
    pairs = float(zeros.sum() * ones.sum())
    if pairs == 0.0:
        return None
    below = zeros.cumsum(0) - zeros
    return float((ones * (below + 0.5 * zeros)).sum()) / pairs
