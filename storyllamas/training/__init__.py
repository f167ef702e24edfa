"""Training: the loop, its optimizer and schedule, and checkpoints from which killed runs resume."""
