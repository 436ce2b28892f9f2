"""What a network runs on, and what a run will need: decided and told before anything is built.

kernels.py       what message passing is computed by, and where graphs are built
memory.py        activations of a step, from sizes and counts; whether they are computed again
states.py        parameters, gradients and optimiser per process, by ZeRO stage and precision
devices.py       GPUs and links from data sheets (devices.json), with their sources
measured.py      a device as `jmp-ds bench step` found it
collectives.py   bytes sent per step and ZeRO stage, and the time they take
duration.py      time of an optimiser step;  fitting.py: constants of a linear model of time from measurements
batches.py       counts of named batches, of an edge budget, of a store
plan.py          all of it together for one setting;  choice.py: which setting;  largest.py: the largest structure
tables.py        a plan as tables for people
"""

from jmp_ds.planning.kernels import Graphs, backend, graphs_on
from jmp_ds.planning.memory import USABLE, StepMemory, available, kept_numbers, scaled, step_memory

__all__ = [
    "USABLE",
    "Graphs",
    "StepMemory",
    "available",
    "backend",
    "graphs_on",
    "kept_numbers",
    "scaled",
    "step_memory",
]
