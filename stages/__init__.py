"""One module for each stage of dvc.yaml: read its params, call the library, write its outputs."""

import os

from storyllamas.training.launch import forget_single_thread

# Read before anything heavy is imported, since DVC may be killed meanwhile; see interrupt.py.
PARENT = os.getppid()

forget_single_thread()
