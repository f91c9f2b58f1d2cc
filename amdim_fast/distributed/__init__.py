"""Processes that share a batch: who they are, what they exchange, one error for all."""
