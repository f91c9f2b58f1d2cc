"""Maps the top-level folder kernels/ to amdim_fast.kernels; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["amdim_fast", "amdim_fast.*"]), "amdim_fast.kernels"],
    package_dir={"amdim_fast.kernels": "kernels"},
    package_data={"amdim_fast": ["py.typed"]},
)
