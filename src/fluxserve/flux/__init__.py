"""The FLUX models as plain PyTorch: usable from a notebook, knowing nothing of serving."""
