"""Residual layers: modules, and the op that runs a row of them."""
