"""Static analysis of compiled GPU kernels: costs of a loop by its machine code, and a simulation of one scheduler."""
