"""What a person wants to know of a corpus before training on it: facts, screen and pictures."""
