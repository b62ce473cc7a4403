"""The checks of ``python -m run_scripts.doctor``."""
