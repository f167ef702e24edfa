"""The C engine from Python."""
