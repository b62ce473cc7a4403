"""Let a tool run as a file. No other module imports this one.

If a tool runs as a file, Python searches the tool's folder first, so ``from run_scripts import start`` finds this file.
This file puts the repository in place of that folder, and the package ``run_scripts`` in its own place.
"""
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
del sys.modules['run_scripts']

import run_scripts  # noqa: F401 - the package, which replaces this module
