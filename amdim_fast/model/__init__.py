"""Encoder, probes and AMDIM."""
