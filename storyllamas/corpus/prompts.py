"""The evaluation prompts of TinyStories, a file of the dataset.

A corpus has them if it is TinyStories, or a folder with the file. Otherwise there are none, and the
stage `evaluate` uses those of params.yaml only.
"""

from __future__ import annotations

from pathlib import Path

from storyllamas import workdir
from storyllamas.corpus import sources, tinystories
from storyllamas.errors import UserError
from storyllamas.params import Corpus
from storyllamas.yaml_loader import loads


def find(corpus: Corpus) -> list[str]:
    """Return the prompts of a corpus; print a sentence if TinyStories' cannot be had.

    Raises:
        UserError: the file is in the folder of the corpus, but is not a list of prompts.
    """
    if corpus.source == "storybook":
        return []
    if corpus.source == "tinystories":
        folder = workdir.root() / "downloads"
        try:
            path = tinystories.download_prompts(folder, corpus.mirror)
        except UserError as error:
            print(f"there are no evaluation prompts: {error}", flush=True)
            return []
        return parse(path)
    path = sources.expand_home(corpus.source) / tinystories.PROMPTS
    if not path.is_file():
        print(f"{path} does not exist: the stage evaluate uses the prompts of params.yaml only")
        return []
    return parse(path)


def parse(path: Path) -> list[str]:
    """Return the prompts of a YAML file, a list of texts or of lists of texts.

    Whitespace at the end of a prompt is dropped: a story continues with it.

    Raises:
        UserError: the file is not such a list.
    """
    try:
        entries = loads(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        entries = None
    texts = []
    for entry in entries if isinstance(entries, list) else [None]:
        for text in entry if isinstance(entry, list) else [entry]:
            if not isinstance(text, str):
                raise UserError(
                    f"{path} is not a list of prompts: replace it by the dataset's, or remove it"
                )
            texts.append(text.rstrip())
    return texts
