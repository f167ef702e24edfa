"""The model card of an exported model, as far as its checkpoint knows where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storyllamas.interop.model import Source

FRONT = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tinystories, storyllamas]
{datasets}---
"""

USE = """\
## Use

```python
from transformers import pipeline

tell = pipeline("text-generation", model="PATH OR NAME OF THIS FOLDER")
print(tell("Once upon a time")[0]["generated_text"])
```

A story begins with `<s>`, which the tokenizer adds, and ends with `</s>`. The model has learned
nothing but short stories for children: it knows no facts and follows no instructions.
"""

DATA = {
    "storybook": "The storybook that comes with StoryLlamas: stories that a program wrote, MIT "
    "licence.",
    "tinystories": "[TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) (Eldan & "
    "Li 2023, arXiv:2305.07759): stories that GPT-3.5 and GPT-4 wrote, licence CDLA-Sharing-1.0.",
}

LICENSE = "MIT, as StoryLlamas itself. The licence of the data stands above."


def text(source: Source) -> str:
    """The card in Markdown, with the metadata that the Hugging Face hub reads."""
    about = source.about
    corpus = about.get("corpus")
    datasets = "datasets: [roneneldan/TinyStories]\n" if corpus == "tinystories" else ""
    title = f"# StoryLlama {about.get('size', '')}".strip()
    sections = [
        FRONT.format(datasets=datasets),
        f"{title}\n\nA Llama of {source.config.parameters:,} parameters that tells children's "
        "stories, trained with StoryLlamas.\n",
        USE,
        _table("Shape", vars(source.config)),
    ]
    if about:
        data = DATA.get(str(corpus), "Stories of the trainer's own; ask them for the licence.")
        sections.append(f"## Data\n\n{data}\n" if corpus else "")
        recipe = {name: about[name] for name in ("recipe", "seed") if name in about}
        sections.append(_table("Recipe", recipe | dict(about.get("hyperparameters", {}))))
        sections.append(_table("Metrics", about.get("training", {}), "Losses are nats a token."))
    else:
        sections.append("How it was trained is not known: it was exported from a weight file.\n")
    sections.append(f"## Licence\n\n{LICENSE}\n")
    return "\n".join(section for section in sections if section)


def _table(title: str, values: Mapping[str, Any], note: str = "") -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    lines = [f"## {title}", "", *([note, ""] if note else []), "| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)
