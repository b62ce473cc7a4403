"""The formats of run_scripts/export.py, a module for each."""
