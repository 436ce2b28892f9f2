"""Triton forms of the operators, registered as `torch.ops.jmp.*`.

Importing this package imports nothing else: its modules need triton and are loaded when that backend is chosen.
"""
