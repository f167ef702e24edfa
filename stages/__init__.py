"""The stages of dvc.yaml: each module reads its parameters, calls the library, writes outputs."""

import os

from storyllamas.training.launch import forget_single_thread

# Read before slow imports, during which DVC may be killed; see training/interrupt.py.
PARENT = os.getppid()

forget_single_thread()
