"""Registered operations (``torch.ops.amdim_fast``) and the plans they run by."""
