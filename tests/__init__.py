"""Tests; folders as the package's."""
