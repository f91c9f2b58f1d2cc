"""Measurements of amdim_fast: harness, benches, and the report that renders their rows."""
