"""Where the two import packages lie: `jmp_ds` here, `jmp_kernels` under kernels/. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["jmp_ds", "jmp_ds.*"]),
        *find_packages("kernels", include=["jmp_kernels", "jmp_kernels.*"]),
    ],
    package_dir={"jmp_kernels": "kernels/jmp_kernels"},
)
