"""transformers on PyTorch as a worker: python -m bench.peers.transformers FOLDER THREADS."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

from bench.peers.worker import BOS, TOP_P, serve


class Transformers:
    """An exported model, by `generate` as its users call it."""

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self.vocab_size = self._model.config.vocab_size

    def _tell(self, stories: int, steps: int, **how: object) -> list[int]:
        start = torch.full((stories, 1), BOS)
        mask = torch.ones_like(start)
        counts = {"min_new_tokens": steps, "max_new_tokens": steps}
        told = self._model.generate(start, attention_mask=mask, **counts, **how)
        first: list[int] = told[0, 1:].tolist()
        return first

    def story(self, steps: int, seed: int) -> None:
        """One story."""
        self.batch(1, steps, seed)

    @torch.inference_mode()
    def prompt(self, ids: Sequence[int]) -> None:
        """In one pass, with the cache that a story would go on with."""
        self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    def batch(self, stories: int, steps: int, seed: int) -> None:
        """In one batch."""
        torch.manual_seed(seed)
        self._tell(stories, steps, do_sample=True, temperature=1.0, top_p=TOP_P, top_k=0)

    def greedy(self, steps: int) -> list[int]:
        """Without sampling."""
        return self._tell(1, steps, do_sample=False)

    def about(self) -> str:
        """The versions."""
        return f"{transformers.__version__}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[2])))
