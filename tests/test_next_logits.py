"""sl_next_logits returns the logits that the next token is sampled from."""

from __future__ import annotations

from pathlib import Path

import engine_files
import numpy as np
import pytest

from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import check, ffi, lib
from storyllamas.errors import UserError

CONFIG = engine_files.small_config()
PROMPT = b"ab a"


def test_they_are_the_logits_of_each_next_token(tmp_path: Path) -> None:
    tensors = engine_files.random_tensors(CONFIG, 5)
    path = engine_files.write(tmp_path / "m.slm", CONFIG, tensors)
    model, session, logits = ffi.new("sl_model **"), ffi.new("sl_session **"), ffi.new("float **")
    check(lib.sl_model_open(model, str(path).encode(), ffi.NULL))
    check(lib.sl_session_new(session, model[0], ffi.NULL))
    with pytest.raises(UserError, match="no sequence has been started: call sl_start first"):
        check(lib.sl_next_logits(session[0], logits))
    options = ffi.new("sl_options *", lib.sl_defaults())
    options.temperature, options.max_tokens, options.ignore_eos = 0, 10, 1
    check(lib.sl_start(session[0], PROMPT, len(PROMPT), options))
    piece, ids, rows = ffi.new("sl_piece *"), [], []
    for _ in range(options.max_tokens):
        for _ in range(2):  # asking twice changes nothing
            check(lib.sl_next_logits(session[0], logits))
        rows.append(np.frombuffer(ffi.buffer(logits[0], 4 * CONFIG.vocab_size), np.float32).copy())
        check(lib.sl_next(session[0], piece))
        ids.append(piece.id)
    check(lib.sl_next_logits(session[0], logits))
    assert logits[0] == ffi.NULL
    check(lib.sl_next(session[0], piece))
    assert piece.stop == lib.SL_STOP_MAX_TOKENS
    lib.sl_session_free(session[0])
    lib.sl_model_close(model[0])

    engine = Engine(path)
    story = engine.generate(PROMPT.decode(), temperature=0, max_tokens=10, ignore_eos=True)
    assert list(story) is not None
    assert ids == story.ids
    whole = [engine.bos_id, *engine.encode(PROMPT.decode()), *ids[:-1]]
    assert (np.stack(rows) == engine.logits(whole)[-len(ids) :]).all()
