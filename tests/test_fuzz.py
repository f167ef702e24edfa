"""The fuzzers run, for a few seconds each."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

SECONDS = 5
TARGETS = ("tokenizer", "ranked_tokenizer", "importers")
CORPUS = ROOT / "tests" / "fuzz" / "corpus"


def test_the_fuzzers_find_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "tests/fuzz/run.py", "--scalar", "--seconds", str(SECONDS)]
    done = subprocess.run(
        [*command, "--folder", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for target in TARGETS:
        assert re.search(rf"^{target}: [1-9][\d,]* executions$", done.stdout, re.M), done.stdout


def test_a_finding_fails_the_run_and_names_the_seed() -> None:
    code = "import rounds; rounds.main('x.py', 'x', lambda seed, _: (1, 'wrong' * (seed == 7)))"
    command = [sys.executable, "-c", code, "--seed", "5", "--minutes", "1"]
    done = subprocess.run(
        command, cwd=ROOT / "tests" / "fuzz", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "seed 7: wrong\n"


def test_the_corpus_is_small_and_current(tmp_path: Path) -> None:
    """The names and versions are those of the files that make_corpus.py writes."""
    script = ROOT / "tests" / "fuzz" / "make_corpus.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    files = {path.name: path.read_bytes() for path in (CORPUS / "weight_file").iterdir()}
    assert files.keys() == {path.name for path in tmp_path.iterdir()}
    assert sum(map(len, files.values())) < 1_000_000
    for name, data in files.items():
        assert data[:8] == (tmp_path / name).read_bytes()[:8], name
