"""Where the import packages lie: `jmp_ds` here, `ds_configs` and `jmp_kernels` beside it. The rest: pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["jmp_ds", "jmp_ds.*"]),
        *find_packages("kernels", include=["jmp_kernels", "jmp_kernels.*"]),
        "jmp_ds.ds_configs",
    ],
    package_data={"jmp_ds.ds_configs": ["*.json"]},
    package_dir={"jmp_kernels": "kernels/jmp_kernels", "jmp_ds.ds_configs": "ds_configs"},
)
