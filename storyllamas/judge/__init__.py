"""A judge: grades and comparisons of stories by a model behind an OpenAI-compatible endpoint."""
