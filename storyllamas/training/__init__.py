"""Training: the loop, its optimizer and schedule, and checkpoints that survive being killed."""
