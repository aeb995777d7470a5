#!/usr/bin/env python3
"""What Python makes of a tokenizer folder that the C++ test has written.

word_tokenizer_ids.py FOLDER OUT: OUT is a JSON list of texts and, for each way to read FOLDER
(transformers from tokenizer.json and from spiece.model alone, sentencepiece itself), their ids.
"""

import itertools
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import sentencepiece
from transformers import AutoTokenizer, T5Tokenizer
from transformers.utils import logging

WORDS = ("a an and red green blue sphere cube cylinder torus rolls spins bounces left right rests "
         "slowly static camera orbits moves closer semi-transparent on the").split()
# No difference between the readers is known for texts without these; sentencepiece takes a tab for
# a character, the mark for a space and special tokens for letters.
NOT_FOR_SENTENCEPIECE = ("\t", "\n", "\u00a0", "\u3000", "▁", "<pad>", "</s>", "<unk>")


def captions():
    """Every word the grammar has, in sentences."""
    for colour, solid, motion in itertools.product(WORDS[3:6], WORDS[6:10], WORDS[10:13]):
        yield f"a {colour} {solid} {motion} left, static camera"
        yield f"a {colour} {solid} {motion} and the blue torus rests. camera orbits slowly,"


def special_cases():
    yield from ["", " ", "   ", ",", ".", ",.", "a", "A", "red", " red ", "red,green"]
    yield from ["red , green", "redred", "reds", "are", "thered", "semi-transparent"]
    yield from ["semi-transparent,"]
    yield from ["semi transparent", "é", "ré", "日本語", "a 日本語 b", "日 本", "😀", "red😀cube"]
    yield from ["😀 😀", "👩\u200d👩\u200d👧 red", "a\u0301", "ﬁ", "Ａ", "\u200b", "\u00ad", "…"]
    yield from ["“red”", "red" * 200, "x" * 500, "~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./"]
    yield from ["<b>red</b>", "1234567", "red\tcube", "\nred\n", "red\u00a0cube"]
    yield from ["red\u3000cube", "▁red", "red▁cube", "▁▁", "red </s> cube", "<unk>"]
    yield from ["a <pad> b</s>", "</s"]


def random_texts(rng, count):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.-'!?"
    strange = "éßñøЖ日本語😀👍🏽♥\u0301ﬁ\u200d"
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            word = rng.choice(WORDS)
            kind = rng.randrange(8)
            if kind == 0:
                word = word.upper()
            elif kind == 1:
                word = word.capitalize()
            elif kind == 2:
                word = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 9)))
            elif kind == 3:
                word += rng.choice(strange) + rng.choice(WORDS)
            elif kind == 4:
                word = rng.choice(strange) * rng.randrange(1, 3)
            elif kind == 5:
                word += rng.choice([",", ".", "...", ",,", "!", "-", "'s"])
            parts += [word, rng.choice([" ", " ", " ", "  ", ""])]
        yield "".join(parts)


def main(folder, out):
    logging.set_verbosity_error()  # no word about texts above 512 ids
    texts = [*captions(), *special_cases(), *random_texts(random.Random(1), 500)]
    with tempfile.TemporaryDirectory() as copy:
        for name in ("spiece.model", "tokenizer_config.json"):
            shutil.copy(pathlib.Path(folder) / name, copy)
        tokenizers = {"T5Tokenizer": T5Tokenizer.from_pretrained(folder),
                      "AutoTokenizer": AutoTokenizer.from_pretrained(folder),
                      "T5Tokenizer of spiece.model": T5Tokenizer.from_pretrained(copy)}
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(pathlib.Path(folder) / "spiece.model"))
    cases = []
    for text in texts:
        ids = {name: tokenizer(text).input_ids for name, tokenizer in tokenizers.items()}
        if not any(part in text for part in NOT_FOR_SENTENCEPIECE):
            ids["sentencepiece"] = processor.encode(text, add_eos=True)
        cases.append({"text": text, "ids": ids})
    sizes = {name: len(tokenizer) for name, tokenizer in tokenizers.items()}
    sizes["sentencepiece"] = processor.vocab_size()
    specials = [processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()]
    pathlib.Path(out).write_text(
        json.dumps({"cases": cases, "sizes": sizes, "specials": specials}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
