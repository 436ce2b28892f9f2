"""jmp-ds: joint multi-domain pre-training of GemNet-OC, and its use.

Units everywhere: eV, Å, eV/Å, eV/Å³ (ASE's sign of stress); cell vectors are rows; forces are -dE/dpos.
"""

__version__ = "0.1.0"
