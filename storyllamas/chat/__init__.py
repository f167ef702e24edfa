"""Conversations with a model that has a chat template."""
