"""Triton kernels: one file per op, under the stem of the op in `ops`.

A file holds kernels (`_name_kernel`), the launcher, which has the name and the arguments of the op,
and `KERNELS`, what compile checks and the tuner must know. `kernels(name)` finds them. Nothing here
knows the engine, and nothing is imported before a tensor on a GPU, a check or a bench asks for it.
"""
