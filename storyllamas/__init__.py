"""StoryLlamas: train small Llama 3 models on TinyStories and sample them in pure C."""
