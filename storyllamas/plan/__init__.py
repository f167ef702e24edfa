"""Estimates of a training run before it starts: `storyllamas plan`."""
