"""Formats that a run is exported to, beside ONNX (run_scripts/export.py)."""
