"""How a forward pass runs: build, objective, attention kernels, packed rows, fused cross-entropy."""
