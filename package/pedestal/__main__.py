"""The command ``pedestal``, also as ``python -m pedestal`` and, for child processes, as a file."""
# PYTHON_ARGCOMPLETE_OK (the tab key completes sub-commands and options; see docs/install.md)
import os
import sys

if __name__ == '__main__' and not __package__:      # as a file: search the package's parent instead of the package
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from pedestal.run_scripts.__main__ import main

if __name__ == '__main__':
    main()
