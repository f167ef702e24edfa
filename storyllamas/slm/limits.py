"""The largest model that the C engine runs.

`python -m storyllamas.slm.limits` writes csrc/model_limits.h from this table, so that importers,
weight files and the engine accept the same models.
"""

from __future__ import annotations

from pathlib import Path

MAX_DIMENSION = 1 << 20
MAX_LAYERS = 1 << 12
MAX_CONTEXT = 1 << 20
MAX_GROUP_SIZE = 1 << 14
MAX_CHAT_TEMPLATE = 1 << 20

MAXIMA = {
    "dim": MAX_DIMENSION,
    "layers": MAX_LAYERS,
    "heads": MAX_DIMENSION,
    "kv_heads": MAX_DIMENSION,
    "head_dim": MAX_DIMENSION,
    "hidden": MAX_DIMENSION,
    "context": MAX_CONTEXT,
    "vocab_size": MAX_DIMENSION,
}
"""Upper limit of each size of a `ModelConfig`; heads * head_dim is at most `MAX_DIMENSION`, too."""


def header() -> str:
    """Return the text of csrc/model_limits.h."""
    return f"""\
/* model_limits.h: the largest model that the engine runs; storyllamas/slm/limits.py writes it. */

#ifndef SL_MODEL_LIMITS_H
#define SL_MODEL_LIMITS_H

enum {{
    SL_MAX_DIMENSION = {MAX_DIMENSION}, /* every size but the next two, and heads * head_dim */
    SL_MAX_LAYERS = {MAX_LAYERS},
    SL_MAX_CONTEXT = {MAX_CONTEXT},
    SL_MAX_GROUP_SIZE = {MAX_GROUP_SIZE},      /* the dot product of a group must fit in 32 bits */
    SL_MAX_CHAT_TEMPLATE = {MAX_CHAT_TEMPLATE}, /* bytes */
}};

#endif
"""


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[2] / "csrc/model_limits.h"
    path.write_text(header(), encoding="utf-8")
