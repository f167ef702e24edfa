"""OpenVINO GenAI as a worker: python -m bench.peers.openvino FOLDER THREADS."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from bench.peers.one_call import OneCall
from bench.peers.worker import serve


class OpenVino(OneCall):
    """A GGUF file of convert_openvino.py."""

    SEED = "rng_seed"

    def __init__(self, folder: str, threads: int) -> None:
        path = Path(folder, "model.gguf")
        self._model = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        about = json.loads(Path(folder, "about.json").read_text(encoding="utf-8"))
        self.vocab_size = int(about["vocab_size"])

    def _generate(self, starts: Sequence[Sequence[int]], steps: int, **how: float) -> list[int]:
        ids = np.array(starts, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        results = self._model.generate(inputs, max_new_tokens=steps, ignore_eos=True, **how)
        return [int(id) for id in results.tokens[0]]

    def about(self) -> str:
        """Return the version."""
        return str(openvino_genai.__version__)


if __name__ == "__main__":
    serve(OpenVino(sys.argv[1], int(sys.argv[2])))
