"""Measures of generated stories."""
