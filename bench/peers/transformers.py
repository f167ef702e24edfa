"""transformers with PyTorch as a worker: python -m bench.peers.transformers FOLDER THREADS."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

from bench.peers.worker import BOS, TOP_P, serve


class Transformers:
    """An exported model that generates with `generate`."""

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        logging: Any = transformers.utils.logging
        logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self.vocab_size = self._model.config.vocab_size

    def _generate(self, sequences: int, steps: int, **how: object) -> list[int]:
        start = torch.full((sequences, 1), BOS)
        mask = torch.ones_like(start)
        counts = {"min_new_tokens": steps, "max_new_tokens": steps}
        generated = self._model.generate(start, attention_mask=mask, **counts, **how)
        first: list[int] = generated[0, 1:].tolist()
        return first

    def story(self, steps: int, seed: int) -> None:
        """Generate one sequence."""
        self.batch(1, steps, seed)

    @torch.inference_mode()
    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the prompt in one pass and fill the cache."""
        self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    def batch(self, sequences: int, steps: int, seed: int) -> None:
        """Generate one batch."""
        torch.manual_seed(seed)
        self._generate(sequences, steps, do_sample=True, temperature=1.0, top_p=TOP_P, top_k=0)

    def greedy(self, steps: int) -> list[int]:
        """Generate without sampling."""
        return self._generate(1, steps, do_sample=False)

    def about(self) -> str:
        """Return the versions."""
        return f"{transformers.__version__}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[2])))
