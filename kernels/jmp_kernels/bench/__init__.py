"""Microbenchmarks of the operators on the index structure of real batches: `python -m jmp_kernels.bench` (docs/kernels.md).

Needs torch and numpy; triton where the Triton operators are timed, matplotlib for the plots, torch-geometric for its own
scatter. An operator whose results or gradients differ from float64 is left out of the report.
"""
