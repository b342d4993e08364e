"""How long things take, and what this machine can do at most. Knows nothing of models or requests;
the standard library and `seesaw._cpu` at most, so that anything may measure, and torch in the files
of CUDA devices.
"""
