"""Triton kernels, installed as ``amdim_fast.kernels``; they import torch and triton only."""

if __name__ != "amdim_fast.kernels":
    raise ImportError(
        f"this folder is imported as {__name__!r}; it must be imported as amdim_fast.kernels, after"
        " the package is installed"
    )
