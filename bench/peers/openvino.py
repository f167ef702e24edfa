"""OpenVINO GenAI as a worker: python -m bench.peers.openvino FOLDER THREADS."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from bench.peers.worker import BOS, TOP_P, serve


class OpenVino:
    """A GGUF file of convert_openvino.py."""

    def __init__(self, folder: str, threads: int) -> None:
        path = Path(folder, "model.gguf")
        self._model = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        about = json.loads(Path(folder, "about.json").read_text(encoding="utf-8"))
        self.vocab_size = int(about["vocab_size"])

    def _generate(self, starts: Sequence[Sequence[int]], steps: int, **how: object) -> list[int]:
        """Generate after prompts of one length and return the first sequence."""
        ids = np.array(starts, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        results = self._model.generate(inputs, max_new_tokens=steps, ignore_eos=True, **how)
        return [int(id) for id in results.tokens[0]]

    def story(self, steps: int, seed: int) -> None:
        """Generate one sequence."""
        self.batch(1, steps, seed)

    def prompt(self, ids: Sequence[int]) -> None:
        """Compute the prompt in one pass, and the most probable next token."""
        self._generate([ids], 1, do_sample=False)

    def batch(self, sequences: int, steps: int, seed: int) -> None:
        """Generate one batch."""
        sampling = {"do_sample": True, "temperature": 1.0, "top_p": TOP_P, "rng_seed": seed}
        self._generate([[BOS]] * sequences, steps, **sampling)

    def greedy(self, steps: int) -> list[int]:
        """Generate without sampling."""
        return self._generate([[BOS]], steps, do_sample=False)

    def about(self) -> str:
        """Return the version."""
        return str(openvino_genai.__version__)


if __name__ == "__main__":
    serve(OpenVino(sys.argv[1], int(sys.argv[2])))
