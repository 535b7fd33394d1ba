"""Times every implementation of every op on this machine: `python -m pallas_kernels.bench`."""
