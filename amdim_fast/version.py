"""The version of the package: the build reads it, and the citation must agree."""

__version__ = "0.1.0"
