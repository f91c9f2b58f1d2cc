"""The version of the package; setup and citation are held to it."""

__version__ = "0.1.0"
