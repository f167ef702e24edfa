"""Copy a GGUF file for OpenVINO: python -m bench.peers.convert_openvino SOURCE TARGET.

OpenVINO GenAI reads weights from GGUF files, but only with a byte-pair tokenizer. The worker gives
it ids, so the copy names such a tokenizer with one merge that nothing uses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gguf import GGUFReader, GGUFWriter, Keys


def main() -> None:
    """Copy the file model.gguf from the folder SOURCE to the folder TARGET."""
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(source / "model.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    values[Keys.Tokenizer.MODEL] = "gpt2"
    writer = GGUFWriter(target / "model.gguf", values[Keys.General.ARCHITECTURE])
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != Keys.General.ARCHITECTURE:
            kind, *of = field.types
            writer.add_key_value(name, values[name], kind, of[-1] if of else None)
    if Keys.Tokenizer.MERGES not in values:
        writer.add_array(Keys.Tokenizer.MERGES, ["a b"])
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, tensor.data, raw_shape=tensor.data.shape, raw_dtype=tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    about = {"vocab_size": len(values[Keys.Tokenizer.LIST])}
    (target / "about.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
