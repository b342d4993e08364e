"""Memory of the host: shared by all ranks of a machine, registered with CUDA, sent to a device."""
