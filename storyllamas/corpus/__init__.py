"""Where stories come from: the bundled storybook, TinyStories, or the user's own files."""
