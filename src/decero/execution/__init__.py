"""Run forward passes: model building, objectives, attention kernels, packed rows, fused cross-entropy."""
