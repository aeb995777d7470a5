#!/usr/bin/env python3
"""Contact sheet and animated picture of what `fovea generate` made of a list of prompts.

    contact_sheet.py --prompts assets/prompts/mini.txt --clips FOLDER \\
        [--verdicts FILE] [--sheet OUT.png] [--animate 1,17,20,35 OUT.webp]

FOLDER holds frames NNNN-FFF.png (request and frame, as `fovea generate --prompts ... --out FOLDER`
names them) or clips NNNN.webp; NNNN counts prompts from 1. FILE has one line a prompt: `yes` or
`no: what is wrong`, said by somebody who has looked.
"""

import argparse
import pathlib
import textwrap

from PIL import Image, ImageDraw, ImageFont, ImageSequence

GOOD, BAD, INK, PAPER = (20, 120, 50), (190, 30, 30), (20, 20, 20), (255, 255, 255)


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=pathlib.Path, required=True, help="one prompt a line")
    parser.add_argument("--clips", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--verdicts", type=pathlib.Path, help="one verdict a line")
    parser.add_argument("--sheet", type=pathlib.Path, help="PNG to write")
    parser.add_argument("--only", help="numbers of prompts, with commas; default: all")
    parser.add_argument("--columns", type=int, default=2)
    parser.add_argument("--shown", type=int, default=5, help="frames of each clip")
    parser.add_argument("--side", type=int, default=96, help="pixels of a frame on the sheet")
    parser.add_argument("--animate", nargs=2, metavar=("NUMBERS", "OUT.webp"))
    return parser.parse_args()


def read_lines(path):
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_clip(folder, number):
    """All frames of a clip as RGB pictures."""
    packed = folder / f"{number:04d}.webp"
    if packed.exists():
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(packed))]
    paths = sorted(folder.glob(f"{number:04d}-*.png"))
    frames = [Image.open(path).convert("RGB") for path in paths]
    assert frames, f"{folder} has no clip {number:04d}"
    return frames


def numbers_of(text, count):
    return [int(word) for word in text.split(",")] if text else list(range(1, count + 1))


def caption(number, prompt, verdict, width):
    """Lines of text that fit, and their colour."""
    words = f"{number}. {prompt}" + (f" [{verdict}]" if verdict else "")
    colour = INK if not verdict else GOOD if verdict == "yes" else BAD
    return textwrap.wrap(words, width), colour


def draw_sheet(options, prompts, verdicts):
    font = ImageFont.load_default(size=11)
    side, shown, gap, head = options.side, options.shown, 8, 30
    numbers = numbers_of(options.only, len(prompts))
    rows = -(-len(numbers) // options.columns)
    cell = (shown * side + gap, side + head)
    sheet = Image.new("RGB", (options.columns * cell[0] + gap, rows * cell[1] + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(numbers):
        x, y = gap + place // rows * cell[0], place % rows * cell[1]
        verdict = verdicts[number - 1]
        lines, colour = caption(number, prompts[number - 1], verdict, shown * side // 6)
        for i, line in enumerate(lines[:2]):
            draw.text((x, y + 4 + 12 * i), line, fill=colour, font=font)
        frames = read_clip(options.clips, number)
        for i in range(shown):
            frame = frames[round(i * (len(frames) - 1) / (shown - 1))]
            sheet.paste(frame.resize((side, side), Image.LANCZOS), (x + i * side, y + head))
    sheet.quantize(256, dither=Image.Dither.NONE).save(options.sheet, optimize=True)


def draw_animation(options, prompts):
    font = ImageFont.load_default(size=12)
    numbers, out = numbers_of(options.animate[0], len(prompts)), options.animate[1]
    clips = [read_clip(options.clips, number) for number in numbers]
    side, head = clips[0][0].width, 36
    pictures = []
    for i in range(max(map(len, clips))):
        picture = Image.new("RGB", (len(clips) * side, side + head), PAPER)
        draw = ImageDraw.Draw(picture)
        for j, (number, clip) in enumerate(zip(numbers, clips)):
            picture.paste(clip[min(i, len(clip) - 1)], (j * side, head))
            for k, line in enumerate(textwrap.wrap(prompts[number - 1], side // 6)[:2]):
                draw.text((j * side + 4, 3 + 15 * k), line, fill=INK, font=font)
        pictures.append(picture)
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=62, loop=0,
                     quality=80, method=6)


def main():
    options = read_arguments()
    prompts = read_lines(options.prompts)
    verdicts = [""] * len(prompts)
    if options.verdicts:
        verdicts = read_lines(options.verdicts)
        assert len(verdicts) == len(prompts), f"{len(verdicts)} verdicts of {len(prompts)} prompts"
        print(sum(verdict == "yes" for verdict in verdicts), "of", len(prompts), "are as asked")
    if options.sheet:
        draw_sheet(options, prompts, verdicts)
    if options.animate:
        draw_animation(options, prompts)


if __name__ == "__main__":
    main()
