"""The library of all operations for CPUs: how it is built, loaded and run; its kernels are beside each operation."""
