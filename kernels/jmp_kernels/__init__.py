"""Operators of message passing on plain tensors: sums over edges that differentiate into one another, and dense layers.

Knows nothing of jmp_ds. What is imported here runs anywhere PyTorch runs and is the CPU path; the Triton operators are in
`triton_ops`, imported where they are chosen.
"""

from jmp_kernels.dense_once import DenseOnce
from jmp_kernels.dense_twice import DenseTwice
from jmp_kernels.messages import ReadOut, TorchMessages
from jmp_kernels.middles import MiddleRows, MiddleTables
from jmp_kernels.operators import BackendName, Messages, Operators, messages_for
from jmp_kernels.segments import Gather, LookUp, Segments, cached_index, segments_of
from jmp_kernels.trilinear import expand_basis, expand_feature, segment_outer, segment_sum

__all__ = [
    "BackendName",
    "DenseOnce",
    "DenseTwice",
    "Gather",
    "LookUp",
    "Messages",
    "MiddleRows",
    "MiddleTables",
    "Operators",
    "ReadOut",
    "Segments",
    "TorchMessages",
    "cached_index",
    "expand_basis",
    "expand_feature",
    "messages_for",
    "segment_outer",
    "segment_sum",
    "segments_of",
]
