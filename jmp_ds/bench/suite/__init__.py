"""Everything that a GPU is needed for, in one run on a machine with torch, triton and numpy alone (docs/kernels.md).

`bash launch/gpu_suite.sh OUTDIR` starts it. It goes on after a part that fails; what failed is in OUTDIR/summary.json and
in the exit code.
"""
