"""A chat with pictures in the terminal: name a file to show it, `/draw WORDS` to get one, `/back` to take a turn back.

python examples/chat.py sticker.bundle
"""

from __future__ import annotations

import argparse
import os

import edgemm


def terminal_picture(pixels, columns: int = 32) -> str:
    """(H, W, 3) uint8 as coloured half blocks: two pixels a character."""
    step = max(1, pixels.shape[1] // columns)
    small = pixels[::step, ::step].astype(int)
    lines = []
    for top, bottom in zip(small[0::2], small[1::2]):
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*a, *b) for a, b in zip(top, bottom))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle")
    args = parser.parse_args(words)
    with edgemm.load(args.bundle) as model, model.session() as chat:
        shown: list[str] = []
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return
            if line.startswith("/draw "):
                picture = model.generate_image(line.removeprefix("/draw ")).image
                print(terminal_picture(picture.to_array()))
            elif line == "/back":
                chat.rewind()
            elif os.path.isfile(line):
                shown.append(line)  # goes with the next message
            elif line:
                try:
                    for chunk in chat.stream_text(line, shown):
                        print(chunk.text, end="", flush=True)
                except KeyboardInterrupt:
                    pass  # what was written stays
                print()
                shown = []


if __name__ == "__main__":
    main()
