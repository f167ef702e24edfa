"""Sources of stories: the bundled storybook, TinyStories, or your own files."""
