"""Statistics of a corpus: words, lengths and beginnings, as text and picture."""
