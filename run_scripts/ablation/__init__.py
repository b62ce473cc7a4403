"""Grids of training runs, for run_scripts/ablate.py and run_scripts/leak.py."""
