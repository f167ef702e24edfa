"""Programs that run an exported model, behind one interface: logits and greedy continuations.

Each one takes a folder that `export_model` wrote; `PyTorch` and `CEngine` take a weight file.
llama2.c is compiled from the checkout in the folder $LLAMA2C.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from storyllamas.config import ModelConfig
from storyllamas.engine.engine import Engine
from storyllamas.model import Llama
from storyllamas.slm import weight_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch.set_num_threads(1)  # several threads mostly wait for each other on models this small


class PyTorch:
    """The reference: storyllamas/model.py on a weight file."""

    def __init__(self, path: Path) -> None:
        file = weight_file.read(path)
        self._load(file.config, dict(file.tensors()))

    @classmethod
    def of(cls, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> PyTorch:
        """Return a model with weights that are in no file."""
        made = cls.__new__(cls)
        made._load(config, tensors)
        return made

    def _load(self, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
        self._model = Llama(config)
        self._model.load_state_dict({name: torch.tensor(each) for name, each in tensors.items()})
        self._model.eval()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._model(torch.tensor([ids]))[0].numpy()


class CEngine:
    """The C engine on a weight file."""

    def __init__(self, path: Path) -> None:
        self._engine = Engine(path)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._engine.logits(ids)


class Transformers:
    """transformers on a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._model(torch.tensor([ids])).logits[0].numpy()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def generate(self, prompt: str) -> str:
        """Return the prompt and its greedy continuation as text."""
        batch = self.tokenizer(prompt, return_tensors="pt")
        ids = self._model.generate(**batch, do_sample=False)[0]
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@lru_cache
def quiet_llama_cpp() -> object:
    """Switch off llama_cpp's log, and return the callback, which has to stay alive."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    return silent


class LlamaCpp:
    """llama.cpp, through llama-cpp-python, on a GGUF file; its key-value cache in float32."""

    def __init__(self, folder: Path) -> None:
        import llama_cpp

        quiet_llama_cpp()
        f32 = llama_cpp.GGML_TYPE_F32
        self._llama = llama_cpp.Llama(
            str(folder / "model.gguf"),
            n_ctx=0,
            logits_all=True,
            type_k=f32,
            type_v=f32,
            n_threads=1,
            n_threads_batch=1,
            verbose=False,
        )

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self._llama.reset()
        self._llama.eval(ids)
        return np.array(self._llama.scores[: len(ids)])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, after BOS if the tokenizer adds it."""
        return self._llama.tokenize(text.encode(), special=False)

    def generate(self, prompt: str) -> str:
        """Return the prompt and its greedy continuation as text."""
        completion = self._llama.create_completion(prompt, max_tokens=None, temperature=0.0)
        return prompt + completion["choices"][0]["text"]


class Llama2c:
    """llama2.c's program for float32 checkpoints."""

    source = "run.c"

    def __init__(self, folder: Path) -> None:
        self._model, self._tokenizer = folder / "model.bin", folder / "tokenizer.bin"
        self._probe = build(self.source, probe=True)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        text = " ".join(map(str, ids)).encode()
        raw = subprocess.run(
            [self._probe, self._model], input=text, capture_output=True, check=True
        )
        return np.frombuffer(raw.stdout, "<f4").reshape(len(ids), -1)

    def encode(self, text: str) -> list[int]:
        command = [self._probe, self._model, self._tokenizer]
        ids = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
        return [int(word) for word in ids.split()]

    def generate(self, prompt: str) -> str:
        """Return the prompt and its greedy continuation, printed by the program itself."""
        program = build(self.source, probe=False)
        command = [program, self._model, "-z", self._tokenizer, "-t", "0", "-n", "0", "-i", prompt]
        text = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        return text.split("\n</s>\n")[0]  # the program stops only at BOS and prints EOS as text


class Llama2cInt8(Llama2c):
    """llama2.c's program for 8-bit checkpoints."""

    source = "runq.c"


@lru_cache
def build(source: str, probe: bool) -> Path:
    """Compile llama2.c's program, or the probe around it, once per process."""
    checkout = Path(os.environ["LLAMA2C"])
    program = Path(tempfile.mkdtemp(prefix="llama2c-")) / "run"
    here = Path(__file__).parent / "llama2c_probe.c" if probe else checkout / source
    flags = ["-O2", "-w", f"-I{checkout}", *(["-DQUANTIZED"] if source == "runq.c" else [])]
    subprocess.run(["cc", *flags, "-o", program, here, "-lm"], check=True)
    return program


def is_installed(runtime: type) -> bool:
    """Return whether a runtime can be used."""
    packages = {Transformers: "transformers", LlamaCpp: "llama_cpp"}
    if runtime in packages:
        return importlib.util.find_spec(packages[runtime]) is not None
    return "LLAMA2C" in os.environ or not issubclass(runtime, Llama2c)


def requires(runtime: type) -> pytest.MarkDecorator:
    """Skip a test if a runtime is not installed."""
    name = runtime.__name__
    return pytest.mark.skipif(
        not is_installed(runtime), reason=f"{name} is not installed: see `make interop`"
    )


def difference(logits: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest absolute difference, divided by the largest absolute reference logit."""
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def greedy(runtime: object, prompt: Sequence[int], count: int) -> list[int]:
    """Return the `count` most probable ids after a prompt, one at a time, ignoring EOS."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(runtime.logits(ids)[-1].argmax()))
    return ids[len(prompt) :]
