"""ONNX Runtime GenAI as a worker: python -m bench.peers.onnxruntime FOLDER THREADS."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai

from bench.peers.one_call import OneCall
from bench.peers.worker import serve


class OnnxRuntime(OneCall):
    """A model that onnxruntime_genai.models.builder converted."""

    SEED = "random_seed"

    def __init__(self, folder: str, threads: int) -> None:
        config = onnxruntime_genai.Config(folder)
        threads_of = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": threads_of}}))
        self._model = onnxruntime_genai.Model(config)
        about = json.loads(Path(folder, "genai_config.json").read_text(encoding="utf-8"))
        self.vocab_size = int(about["model"]["vocab_size"])

    def _generate(self, starts: Sequence[Sequence[int]], steps: int, **how: float) -> list[int]:
        params = onnxruntime_genai.GeneratorParams(self._model)
        length = len(starts[0]) + steps
        params.set_search_options(
            batch_size=len(starts), min_length=length, max_length=length, **how
        )
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.array(starts, np.int32))
        for _ in range(steps):
            generator.generate_next_token()
        return [int(id) for id in generator.get_sequence(0)[len(starts[0]) :]]

    def about(self) -> str:
        """Return the version."""
        return version("onnxruntime-genai")


if __name__ == "__main__":
    serve(OnnxRuntime(sys.argv[1], int(sys.argv[2])))
