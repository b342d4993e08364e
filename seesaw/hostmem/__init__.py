"""Memory of the host that all ranks of a machine map, and its registration with CUDA."""
