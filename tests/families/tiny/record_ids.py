"""Records the ids that the library's processors of Qwen3-VL and Cosmos3 give; they need torchvision, the tests do not.

    python -m tests.families.tiny.record_ids        # writes tests/fixtures/golden/processor_ids.json

torchvision's transforms alone are used; of a build that does not fit torch's its own operators are left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from PIL import Image

from edgemm.families.chat_ids import conversations
from tests.families.tiny.folders import write_folder

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "processor_ids.json"
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
KINDS = {"qwen3_vl": {"cosmos": False}, "cosmos3_omni": {"cosmos": True}}


def processor(folder: Path) -> Any:
    from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words, eye = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessor.from_pretrained(folder)
    video = Qwen3VLVideoProcessor(patch_size=eye.patch_size)
    return Qwen3VLProcessor(eye, words, video, chat_template=words.chat_template)


def ids(library: Any, talk: Any, side: int) -> list[int]:
    """-1 where a picture is read."""
    shown = Image.new("RGB", (side, side), "red")
    parts = [
        {
            "role": message.role,
            "content": [
                *({"type": "image", "image": shown} for _ in message.images),
                {"type": "text", "text": message.content},
            ],
        }
        for message in talk
    ]
    found = library.apply_chat_template(parts, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    return [-1 if token == library.image_token_id else token for token in found[0]]


def main() -> None:
    told: dict[str, Any] = {}
    for kind, changes in KINDS.items():
        with tempfile.TemporaryDirectory() as made:
            folder = write_folder("qwen3_vl", Path(made) / "folder", **changes)
            library = processor(folder)
            told[kind] = [
                [[[m.role, m.content, len(m.images)] for m in talk], ids(library, talk, 32)]
                for _, talk in conversations(True, pictures=True)
            ]
            told["tokenizer"] = json.loads((folder / "tokenizer.json").read_text())
    lines = ",\n".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in told.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
