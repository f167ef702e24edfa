"""Other engines as workers, see ../worker.h."""
