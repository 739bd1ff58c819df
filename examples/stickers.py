"""A sticker maker: a sheet of stickers of each line of a text file, every one drawn again by its seed.

python examples/stickers.py sticker.bundle ideas.txt --output sheet.png --each 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import edgemm


def sheet(model, ideas: list[str], each: int, seed: int = 0, gap: int = 4) -> Image.Image:
    """A row an idea, `each` seeds side by side."""
    rows = [[one.to_pil() for one in model.generate_image(idea, num_images=each, seed=seed).images] for idea in ideas]
    width, height = rows[0][0].size
    made = Image.new("RGB", (gap + (width + gap) * each, gap + (height + gap) * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            made.paste(picture, (gap + x * (width + gap), gap + y * (height + gap)))
    return made


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("ideas", type=Path, help="a text file, a prompt a line")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--each", type=int, default=4, help="stickers of each idea (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    ideas = [line.strip() for line in args.ideas.read_text(encoding="utf-8").splitlines() if line.strip()]
    with edgemm.load(args.bundle) as model:
        sheet(model, ideas, args.each, args.seed).save(args.output)
    print(f"Wrote {args.output}: {len(ideas)} ideas, {args.each} stickers each, seeds from {args.seed}")


if __name__ == "__main__":
    main()
