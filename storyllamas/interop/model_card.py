"""The model card of an exported model, with the facts about its training that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storyllamas.interop.model import InteropModel

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

generate = pipeline("text-generation", model="PATH OR NAME OF THIS FOLDER")
print(generate("Once upon a time")[0]["generated_text"])
```

A story begins with `<s>`, which the tokenizer adds, and ends with `</s>`. The model was trained on
nothing but short stories for children: it knows no facts and follows no instructions.
"""

INSTRUCT_USE = """\
## Use

```python
from transformers import pipeline

generate = pipeline("text-generation", model="PATH OR NAME OF THIS FOLDER")
prompt = [{"role": "user", "content": "Features: BadEnding\\nWords: dragon, cake"}]
print(generate(prompt)[0]["generated_text"][-1]["content"])
```

The model continues `<s>`, a prompt and `<s>` with a response and `</s>`: see its chat template.
The prompts in its training data decide what it can follow.
"""

DATA = {
    "storybook": "The storybook that comes with StoryLlamas: stories that a program wrote, MIT "
    "licence.",
    "tinystories": "[TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories) (Eldan & "
    "Li 2023, arXiv:2305.07759): stories that GPT-3.5 and GPT-4 wrote, licence CDLA-Sharing-1.0.",
}

LICENSE = "MIT, like StoryLlamas itself. The licence of the data is given above."


def text(model: InteropModel) -> str:
    """Return the card in Markdown, with the metadata that the Hugging Face hub reads."""
    about = model.about
    corpus = about.get("corpus")
    datasets = "datasets: [roneneldan/TinyStories]\n" if corpus == "tinystories" else ""
    title = f"# StoryLlama {about.get('size', '')}".strip()
    sections = [
        FRONT.format(datasets=datasets),
        f"{title}\n\nA Llama of {model.config.parameters:,} parameters that generates children's "
        "stories, trained with StoryLlamas.\n",
        INSTRUCT_USE if about.get("corpus_kind") == "instruct" else USE,
        _table("Shape", vars(model.config)),
    ]
    if about:
        data = DATA.get(
            str(corpus), "Stories supplied by whoever trained the model; ask them for the licence."
        )
        sections.append(f"## Data\n\n{data}\n" if corpus else "")
        recipe = {name: about[name] for name in ("recipe", "seed") if name in about}
        sections.append(_table("Recipe", recipe | dict(about.get("hyperparameters", {}))))
        sections.append(
            _table("Metrics", about.get("training", {}), "Losses are in nats per token.")
        )
    else:
        sections.append("The training is unknown: the model was exported from a weight file.\n")
    sections.append(f"## Licence\n\n{LICENSE}\n")
    return "\n".join(section for section in sections if section)


def _table(title: str, values: Mapping[str, Any], note: str = "") -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    lines = [f"## {title}", "", *([note, ""] if note else []), "| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)
