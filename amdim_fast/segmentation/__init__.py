"""Segmentation: which component explains which place of an image."""
