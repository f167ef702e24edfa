"""One module for each stage of dvc.yaml: read its params, call the library, write its outputs."""

import os

# Read before anything heavy is imported, since DVC may be killed meanwhile; see interrupt.py.
PARENT = os.getppid()
