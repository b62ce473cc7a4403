"""Lets a tool run as a file. Python then looks for modules beside the tool, so that its ``from run_scripts import start`` finds this
file; from here on Python looks in the repository instead, and ``run_scripts`` is the folder. Nobody else imports this."""
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
del sys.modules['run_scripts']

import run_scripts  # noqa: F401 - the folder, which takes this module's place
