"""The version of Pedestal. ``pyproject.toml`` reads it here, and so do results and ``pedestal --version``."""
__version__ = '0.1.0'
