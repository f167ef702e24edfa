"""The C engine under forks, failed system calls, broken weights and paths without a file."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import engine_files
import numpy as np
import pytest
from conftest import ROOT
from engine_files import BOS, EOS, small_config, word_id

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import ffi, lib
from storyllamas.errors import UserError

LIMIT = 120  # seconds after which a program that hangs is killed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model of more than 1 MB, which uses several threads."""
    config = small_config(dim=64, hidden=640, vocab_size=3000, context=80)
    path = tmp_path_factory.mktemp("model") / "m.slm"
    engine_files.write(path, config, engine_files.random_tensors(config, 1))
    assert path.stat().st_size > 1 << 20
    return path


# ---- Forks ---------------------------------------------------------------------------------------

FORK = """
import os, sys
from storyllamas.engine.engine import Engine
draft = Engine(sys.argv[1], threads=2) if sys.argv[2:] else None
engine = Engine(sys.argv[1], threads=3, draft=draft)
idle = engine.logits([5, 300])
single = Engine(sys.argv[1], threads=1)
whole = "".join(single.generate("a", seed=1, ignore_eos=True, max_tokens=60))
for _ in range(20):
    story = engine.generate("a", seed=1, ignore_eos=True, max_tokens=60)
    first = next(story)
    child = os.fork()
    assert first + "".join(story) == whole
    assert (engine.logits([5, 300]) == idle).all()
    if child == 0:
        engine._idle.clear()
        del story, engine
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("draft", [[], ["draft"]], ids=["plain", "draft"])
def test_a_child_uses_and_frees_the_sessions_that_it_inherits(
    model: Path, draft: list[str]
) -> None:
    subprocess.run([sys.executable, "-c", FORK, model, *draft], check=True, timeout=LIMIT)


MUTEX = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "thread_pool.h"
static void nothing(void *context, size_t first, size_t end, size_t thread) {
    (void)context, (void)first, (void)end, (void)thread;
}
int main(void) {
    sl_thread_pool *pool = sl_thread_pool_new(4, 4);
    if (!pool || !sl_thread_pool_is_mine(pool)) return 1;
    for (int i = 0; i < 200; i++) {
        usleep(50 + (unsigned)i); /* the threads go to sleep with the mutex about now */
        const pid_t child = fork();
        if (child == 0) {
            const int is_mine = sl_thread_pool_is_mine(pool);
            sl_thread_pool_free(pool);
            _exit(is_mine);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) return 2;
        sl_parallel_for(pool, 8, 1, nothing, NULL);
    }
    sl_thread_pool_free(pool);
    return 0;
}
"""


def test_a_mutex_held_at_a_fork_stops_nobody(tmp_path: Path) -> None:
    source = tmp_path / "mutex.c"
    source.write_text("#define _DEFAULT_SOURCE\n" + MUTEX)
    compiler = [os.environ.get("CC", "cc"), "-std=c11", "-O1", "-I", ROOT / "csrc"]
    pool = [ROOT / "csrc" / "thread_pool.c", ROOT / "csrc" / "platform" / "posix.c"]
    program = tmp_path / "mutex"
    subprocess.run([*compiler, source, *pool, "-pthread", "-o", program], check=True)
    subprocess.run([program], check=True, timeout=LIMIT)


# ---- Logits that are not finite ------------------------------------------------------------------


def broken_model(path: Path) -> Path:
    """Write a model: after word 0 a logit is NaN; word 2 follows word 1; EOS follows the others."""
    following = {word_id(1): word_id(2), word_id(2): EOS}
    size = small_config().vocab_size
    rows = np.zeros((size, size), np.float32)
    for token in range(size):
        rows[token, following.get(token, EOS)] = 50
    data = bytearray(engine_files.write_chain(path, lambda token: rows[token]).read_bytes())
    (embedding,) = struct.unpack_from("<Q", data, 120)
    tile, row = divmod(word_id(0), 16)
    place = embedding + 4 * (16 * (tile * size + word_id(0)) + row)
    assert struct.unpack_from("<f", data, place) == (1,)
    struct.pack_into("<f", data, place, float("nan"))  # the writer takes finite weights only
    path.write_bytes(engine_files.sealed(data))
    return path


def test_a_step_reports_the_others_when_one_fails(tmp_path: Path) -> None:
    engine = Engine(broken_model(tmp_path / "m.slm"), threads=1)
    session = engine._new_session(3)
    options = lib.sl_defaults()
    options.temperature = 0
    prompts = [word_id(1), word_id(0), word_id(2)]
    for slot, first in enumerate(prompts):
        ids = ffi.new("int32_t[]", [BOS, first])
        assert lib.sl_start_slot_ids(session, slot, ids, 2, ffi.addressof(options)) == 0
    pieces = ffi.new("sl_piece[]", 3)
    assert lib.sl_step(session, pieces) == lib.SL_ERROR_NUMBER
    assert [piece.stop for piece in pieces] == [lib.SL_RUNNING, lib.SL_IDLE, lib.SL_STOP_EOS]
    assert [piece.id for piece in pieces] == [word_id(2), -1, EOS]
    assert pieces[0].length == len(engine_files.WORDS[2])
    assert lib.sl_step(session, pieces) == lib.SL_OK
    assert [piece.stop for piece in pieces] == [lib.SL_STOP_EOS, lib.SL_IDLE, lib.SL_STOP_EOS]


def test_stories_before_the_one_that_fails_are_generated(tmp_path: Path) -> None:
    engine = Engine(broken_model(tmp_path / "m.slm"), threads=1)
    stories = engine.generate_many(["b", "b", "ba", "b"], temperature=0)  # "a" is word 0
    assert [next(stories).index, next(stories).index] == [0, 1]
    with pytest.raises(UserError, match="story 2: the model's logits are not finite"):
        next(stories)


# ---- Paths without a file, output that cannot be written -----------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_model_that_is_no_file_is_rejected_at_once(
    program: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "m.slm"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    done = subprocess.run(
        [program, path], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    message = f"weight file {path} is not a regular file: give the path of a .slm file"
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    with pytest.raises(UserError, match=re.escape(message)):
        Engine(path)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["MODEL", "--info"], ["MODEL", "-n", "3"], ["MODEL", "--bench"]]
)
@pytest.mark.parametrize("output", [">&-", ">/dev/full"])
def test_output_that_cannot_be_written_is_an_error(
    program: Path, model: Path, arguments: list[str], output: str
) -> None:
    if output == ">/dev/full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    given = [str(model) if argument == "MODEL" else argument for argument in arguments]
    command = ["sh", "-c", f'"$0" "$@" {output}', program, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: standard output cannot be written" in done.stderr


# ---- Each allocation, mapping and thread fails once ----------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the linker must know --wrap")
@pytest.mark.parametrize("sanitizer", ["", "-fsanitize=address,undefined"])
def test_each_request_to_the_system_may_fail_once(
    tmp_path: Path, model: Path, sanitizer: str, library: Path, sanitized: Path
) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    assert compiler
    csrc = ROOT / "csrc"
    names = ["malloc", "calloc", "aligned_alloc", "mmap", "mremap", "pthread_create"]
    wrap = [f"-Wl,--wrap={name}" for name in names]
    options = ["-std=c11", "-O0", "-g", "-I", csrc, *wrap, *([sanitizer] if sanitizer else [])]
    test = ROOT / "tests" / "c" / "one_failure.c"
    program = tmp_path / "one_failure"
    linked = sanitized / "library.o" if sanitizer else library
    command = [compiler, *options, test, linked, "-lm", "-pthread", "-o", program]
    subprocess.run(command, check=True)
    config = small_config(dim=128, vocab_size=18000, context=40)  # more than 8 MB: it migrates
    large = engine_files.write(tmp_path / "l.slm", config, engine_files.random_tensors(config, 1))
    for path, kinds in ((model, 8), (large, 1)):
        done = subprocess.run(
            [program, path, str(kinds)], capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert int(done.stdout.split()[0]) >= 18
