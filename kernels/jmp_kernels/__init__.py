"""Operators of message passing on plain tensors: sums over edges that differentiate into one another.

Knows nothing of jmp_ds. What is here runs anywhere PyTorch runs and is the CPU path.
"""

from jmp_kernels.segments import Segments, segments_of
from jmp_kernels.trilinear import expand_basis, expand_feature, segment_outer, segment_sum

__all__ = ["Segments", "expand_basis", "expand_feature", "segment_outer", "segment_sum", "segments_of"]
