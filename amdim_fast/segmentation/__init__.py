"""Which component explains which place."""
