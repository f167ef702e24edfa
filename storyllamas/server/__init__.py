"""Serving stories to many clients at once."""
