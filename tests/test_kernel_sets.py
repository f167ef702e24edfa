"""Every instruction set of this processor and any number of threads give the same story."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import engine_files
import numpy as np
import pytest

from storyllamas.config import ModelConfig
from storyllamas.engine.engine import CACHES, Engine, kernel_sets
from storyllamas.errors import UserError

CONFIG = ModelConfig(
    dim=72, layers=3, heads=6, kv_heads=2, head_dim=20, hidden=150, context=150, vocab_size=300
)
IDS = np.random.default_rng(3).integers(3, CONFIG.vocab_size, CONFIG.context).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return engine_files.write_types(tmp_path_factory.mktemp("sets"), CONFIG)


def test_the_reference_is_always_there() -> None:
    assert kernel_sets()[-1] == "scalar"


@pytest.mark.parametrize("kernels", kernel_sets())
def test_greedy_stories_are_pytorchs(files: dict[str, Path], kernels: str) -> None:
    model = engine_files.torch_model(CONFIG, engine_files.random_tensors(CONFIG, 5))
    for threads in (1, 2, 5):
        engine = Engine(files["f32"], kernels=kernels, threads=threads)
        assert engine.info["kernels"] == kernels
        story = engine.generate(IDS[:7], temperature=0, max_tokens=60, ignore_eos=True)
        assert list(story) is not None
        logits = engine_files.torch_logits(model, IDS[:7] + story.ids)
        assert story.ids == logits[6:-1].argmax(axis=1).tolist()


@pytest.mark.parametrize("kernels", kernel_sets()[:-1])
@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_logits_are_the_references(files: dict[str, Path], name: str, kernels: str) -> None:
    reference = Engine(files[name], kernels="scalar", threads=1).logits(IDS)
    logits = Engine(files[name], kernels=kernels).logits(IDS)
    bound = 1e-5 if name == "f32" else 2e-2  # a rounded activation may fall to the other side
    assert np.abs(logits - reference).max() <= bound * np.abs(reference).max()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_sets_with_fused_multiply_add_are_bit_identical(
    files: dict[str, Path], name: str, cache: str
) -> None:
    found = []
    for kernels in kernel_sets()[:-1]:
        engine = Engine(files[name], kernels=kernels, cache=cache)
        story = engine.generate(IDS[:5], temperature=1.0, max_tokens=40, ignore_eos=True)
        assert list(story) is not None
        found.append((engine.logits(IDS).tobytes(), engine.logits(IDS[:1]).tobytes(), story.ids))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("kernels", kernel_sets())
@pytest.mark.parametrize("name", ["f32", "q8", "q4"])
def test_threads_chunks_and_pages_change_no_bit(
    files: dict[str, Path], name: str, kernels: str
) -> None:
    whole = Engine(files[name], kernels=kernels, threads=1, pages="shared").logits(IDS)
    others = Engine(files[name], kernels=kernels, threads=3, pages="huge")
    assert (others.logits(IDS) == whole).all()
    for count in (*range(1, 14), len(IDS) - 1):  # blocks of any number of rows
        assert (others.logits(IDS[:count]) == whole[:count]).all()
    one_by_one = others.generate(IDS[:1], temperature=0, max_tokens=30, ignore_eos=True)
    assert list(one_by_one) is not None
    ids = IDS[:1] + one_by_one.ids
    assert whole.shape[1] == CONFIG.vocab_size
    assert Engine(files[name], kernels=kernels).logits(ids).argmax(1).tolist()[:-1] == ids[1:]


@pytest.mark.parametrize("pages", ["shared", "huge", "auto"])
def test_large_files_are_read_and_summed_in_parts(tmp_path: Path, pages: str) -> None:
    """Several threads read parts; the checksum of each part counts, in its place."""
    config = engine_files.small_config(dim=128, vocab_size=9000)
    tensors = engine_files.random_tensors(config, 2)
    path = engine_files.write(tmp_path / "large.slm", config, tensors)
    good = path.read_bytes()
    assert len(good) > 1 << 22
    assert Engine(path, pages=pages).info["file_bytes"] == len(good)
    for place in (300, len(good) // 3, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(UserError, match="its checksum does not match"):
            Engine(path, pages=pages)
    for first, second in ((1 << 19, 1 << 20), (1 << 20, 3 << 20)):  # 64 bytes change places
        swapped = bytearray(good)
        swapped[first : first + 64] = good[second : second + 64]
        swapped[second : second + 64] = good[first : first + 64]
        path.write_bytes(swapped)
        with pytest.raises(UserError, match="its checksum does not match"):
            Engine(path, pages=pages)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file that migrates to huge pages."""
    config = engine_files.small_config(dim=128, vocab_size=18000)
    path = tmp_path_factory.mktemp("large") / "m.slm"
    engine_files.write(path, config, engine_files.random_tensors(config, 2))
    assert path.stat().st_size > 1 << 23
    return path


def is_mapped(path: Path) -> bool:
    return path.as_posix() in Path("/proc/self/maps").read_text()


def test_a_large_file_migrates_while_it_is_read(large: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("only Linux migrates it")
    ids = [5, 300, 17999]
    expected = Engine(large, pages="shared").logits(ids)
    assert not is_mapped(large)  # closed
    engine = Engine(large)
    deadline = time.monotonic() + 20
    was_mapped = True
    while was_mapped and time.monotonic() < deadline:
        was_mapped = is_mapped(large)
        assert (engine.logits(ids) == expected).all()
    assert not was_mapped
    for passes in range(10):  # closed before, during or after the migration
        engine = Engine(large)
        for _ in range(passes):
            engine.logits(ids)
    del engine
    assert not is_mapped(large)


FORK = """
import os, sys
from storyllamas.engine.engine import Engine
engine = Engine(sys.argv[1], threads=1)
for _ in range(int(sys.argv[2])):
    engine.logits([5, 300])
child = os.fork()
for _ in range(5):
    engine.logits([5, 300])
del engine
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_may_use_and_close_a_file_that_migrates(large: Path) -> None:
    for passes in (0, 4, 6):
        command = [sys.executable, "-c", FORK, large, str(passes)]
        subprocess.run(command, check=True, timeout=60)


def test_unknown_options_are_rejected(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=f'no kernels "mmx": use one of {", ".join(kernel_sets())}'):
        Engine(files["f32"], kernels="mmx")
    with pytest.raises(UserError, match="pages is 'large' and must be one of auto, shared, huge"):
        Engine(files["f32"], pages="large")
    with pytest.raises(UserError, match="threads is 65 and must be 0"):
        Engine(files["f32"], threads=65).logits(IDS)
