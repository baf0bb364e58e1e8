"""Static analysis of compiled GPU kernels: what a loop costs by its machine code, and a simulation of one scheduler."""
