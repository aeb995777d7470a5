"""Trains tiny Unigram tokenizers, saves them as transformers does, and writes the ids and the
cleaned prompts that Python gives for random strings.

usage: make_tokenizer.py OUT_DIR

OUT_DIR/NAME/      a tokenizer's folder
OUT_DIR/NAME.json  {"cases": [{"text", "max_length", "ids"}], "vocab_size", "pad_id", "eos_id"}
OUT_DIR/clean.json {"cases": [{"text", "clean"}], "equal_to_full": count}
"""

import html
import json
import os
import random
import sys

import ftfy
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from diffusers.pipelines.wan.pipeline_wan import prompt_clean, whitespace_clean

WORDS = (
    "a red sphere rolls left and blue cube spins static camera the quick brown fox naïve über café "
    "Straße 猫 が 好き です 東京 привет мир γειά κόσμε שלום مرحبا नमस्ते ไทย 한국어 the of in to is was "
    "cinematic slow motion close-up 4k 16:9 don't it's 3.14 1,000 ½ km² № ™ …"
).split()
ENTITIES = (
    "&amp; &lt; &gt; &quot; &nbsp; &copy; &copy &eacute; &EACUTE; &NTILDE; &nTILDE; "
    "&amp;amp;amp;lt; "
    "&#233; &#xE9; &#X1F600; &#0; &#128; &#x99; &#55296; &#1114112; &#99999999999; &#11; &#59; "
    "&#x3b; &notit; &notin; &not &hellip; &hearts &unknown; &; &# &#; &#x; &#12a; &szlig; &SZLIG; "
    "&fflig; "
    "&semi; &lt;b&gt; &amp;#233; &amp;#38;amp; &Tab; &NewLine; &zwj; &ngE; &nLt; "
    "&CounterClockwise; "
    "&AMP;AMP;AMP; &amplt; &ltamp; &#10 &#13; &#xFDD0; &#xFFFE; &#129; &#141;"
).split()
ODD = list(
    "ﬁﬂﬀﬃﬄﬅﬆĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌ“”‘’‚„‛‟ʼＡＢＣａｂｃ１２３！？　ｱｲｳﾞﾟｶﾞ￠￡￦ﾡￂ"
    "\u00a0\u2003\u200b\u200c\u200d\u200e\ufeff"
    "\u2028\u2029\u0085\u0080\u0091\u0093\u0099\u009d\x00\x01\x07\x08\x0b\x0c\x1b\x1c\x1d\x1e"
    "\x1f\x7f\r\n\t▁▁▂"
    "\u206a\u206f\ufff9\ufffb\ufffc\ufffd\uffff\U000e0067\U0001d173é𝒳𝔸Ⅷ①㍿㌔㍐ﷺ가각힣각"
) + ["\r\n", "e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u0344", "\u212b", "\u2126", "क्ष",
     "नि", "ำ",
     "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "❤️", "\u0600١", "\x1b[31mred\x1b[0m", "\x1b[1;", "\x1b[٣m",
     "  ", "   \t "]
TOKENS = ["</s>", "<pad>", "<unk>", "<s>", "<extra_id_0>", "<extra_id_7>", "<extra_id_99>",
          "<extra_id_100>", "<mask>", "[SEP]", "<obj>", "word", "ＷＩＤＥ", "WIDE", "</S>", "<pad",
          "extra_id_0>", "<0x41>", "<ctl>"]


def random_character(rng):
    block = rng.choice([(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x500), (0x590, 0x700),
                        (0x900, 0xE00), (0x1100, 0x1200), (0x2000, 0x2C00), (0x3000, 0x3400),
                        (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xF900, 0xFFFE), (0x1D400, 0x1D800),
                        (0x1F300, 0x1FA00), (0x1F1E6, 0x1F200)])
    return chr(rng.randrange(*block))


def random_string(rng):
    parts = []
    for _ in range(rng.randrange(0, 14)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.5:
            parts.append(rng.choice(TOKENS))
        elif kind < 0.6:
            parts.append(rng.choice(ENTITIES))
        elif kind < 0.78:
            parts.append("".join(rng.choice(ODD) for _ in range(rng.randrange(1, 4))))
        elif kind < 0.9:
            parts.append("".join(random_character(rng) for _ in range(rng.randrange(1, 5))))
        else:
            word = rng.choice(WORDS)
            parts.append("".join(c.upper() if rng.random() < 0.5 else c + rng.choice(ODD)
                                 for c in word))
        parts.append(rng.choice(["", " ", " ", " ", "  ", "\n", "\t ", "\u3000", "."]))
    return "".join(parts)


def train(folder, rng, rule, size, **options):
    os.makedirs(folder, exist_ok=True)
    corpus = os.path.join(folder, "corpus.txt")
    with open(corpus, "w", encoding="utf-8") as out:
        for _ in range(1500):
            out.write(" ".join(rng.choice(WORDS) for _ in range(10)) + "\n")
    ids = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    ids.update({key: options.pop(key) for key in list(options) if key in ids})
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=os.path.join(folder, "spiece"), vocab_size=size,
        model_type="unigram", normalization_rule_name=rule, hard_vocab_limit=False, num_threads=1,
        minloglevel=2, **ids, **options)
    os.remove(corpus)
    os.remove(os.path.join(folder, "spiece.vocab"))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as out:
        json.dump(value, out)


def configure(folder, **keys):
    write_json(os.path.join(folder, "tokenizer_config.json"),
               {"tokenizer_class": "T5Tokenizer", **keys})


def cases(tokenizer, rng, count):
    out = []
    for i in range(count):
        text = random_string(rng)
        if i % 2:
            text = prompt_clean(text)
        max_length = rng.choice([512, 512, 512, 226, 20, 7, 3, 1])
        ids = tokenizer(text, truncation=True, max_length=max_length,
                        add_special_tokens=True).input_ids
        out.append({"text": text, "max_length": max_length, "ids": ids})
    return out


def write_cases(out_dir, name, tokenizer, rng, count):
    eos = tokenizer.eos_token_id
    write_json(os.path.join(out_dir, name + ".json"), {
        "cases": cases(tokenizer, rng, count), "vocab_size": len(tokenizer),
        "pad_id": tokenizer.pad_token_id, "eos_id": -1 if eos is None else eos})


def save_as_json(source, target, edit=None, **config):
    """Saves a spiece folder as transformers does; `edit` may change the tokenizer before."""
    tokenizer = T5Tokenizer.from_pretrained(source)
    if edit:
        edit(tokenizer)
    tokenizer.save_pretrained(target)
    if config:
        path = os.path.join(target, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            keys = json.load(file)
        write_json(path, {**keys, **config})


def add_flagged(tokenizer):
    tokenizer.add_tokens([
        AddedToken("<mask>", lstrip=True, rstrip=False, normalized=False),
        AddedToken("[SEP]", rstrip=True, normalized=False, special=True),
        AddedToken("<obj>", lstrip=True, rstrip=True, normalized=True),
        AddedToken("word", single_word=True, normalized=True),
        AddedToken("WIDE", normalized=True),
        AddedToken("naïve", single_word=True, normalized=False),
        AddedToken("猫", normalized=True)])


def make_generic(source, target):
    """A tokenizer that is not T5's: all of tokenizer.json counts."""
    with open(os.path.join(source, "tokenizer.json"), encoding="utf-8") as file:
        data = json.load(file)
    pieces = [tuple(piece) for piece in data["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁"), normalizers.Replace("the", "THE")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A </s>", pair="$A $B", special_tokens=[("</s>", 1), ("<pad>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>",
                            unk_token="<unk>").save_pretrained(target)


def make_folders(out_dir, rng):
    """Yields (name, tokenizer, number of cases)."""
    def path(name):
        return os.path.join(out_dir, name)

    train(path("spiece"), rng, "nmt_nfkc", 400)
    configure(path("spiece"), extra_ids=0)
    yield "spiece", T5Tokenizer, 2400
    save_as_json(path("spiece"), path("json"))
    yield "json", T5Tokenizer, 2400
    train(path("spiece_extra"), rng, "nmt_nfkc_cf", 250)
    configure(path("spiece_extra"))
    yield "spiece_extra", T5Tokenizer, 600
    save_as_json(path("spiece_extra"), path("json_extra"))
    yield "json_extra", T5Tokenizer, 2400
    train(path("identity"), rng, "identity", 120, byte_fallback=False)
    configure(path("identity"), extra_ids=0)
    yield "identity", T5Tokenizer, 600
    # UMT5's own order of special tokens.
    train(path("umt5"), rng, "nmt_nfkc", 500, bos_id=2, unk_id=3,
          user_defined_symbols=["<obj>", "the"], control_symbols=["<ctl>"])
    configure(path("umt5"), extra_ids=8)
    yield "umt5", T5Tokenizer, 600
    save_as_json(path("umt5"), path("umt5_json"))
    yield "umt5_json", T5Tokenizer, 600
    # As transformers 4 wrote its folders.
    save_as_json(path("spiece"), path("old_style"),
                 additional_special_tokens=["<extra_id_0>", "<extra_id_1>"], extra_ids=2,
                 extra_special_tokens=[], added_tokens_decoder={
                     "0": {"content": "<pad>", "lstrip": False, "normalized": False,
                           "rstrip": False, "single_word": False, "special": True},
                     "1": {"content": "</s>", "lstrip": False, "normalized": False,
                           "rstrip": True, "single_word": False, "special": True}})
    yield "old_style", T5Tokenizer, 600
    save_as_json(path("spiece"), path("flags"), add_flagged)
    yield "flags", T5Tokenizer, 2400
    save_as_json(path("spiece"), path("left"), add_flagged, truncation_side="left",
                 split_special_tokens=True)
    yield "left", T5Tokenizer, 600
    make_generic(path("json"), path("generic"))
    yield "generic", PreTrainedTokenizerFast, 2400


def write_clean(out_dir, rng, count):
    plain = ftfy.TextFixerConfig(fix_encoding=False, explain=False)
    out, equal = [], 0
    for _ in range(count):
        text = random_string(rng)
        fixed = ftfy.fix_text(text, plain)
        clean = whitespace_clean(html.unescape(html.unescape(fixed)).strip())
        equal += clean == prompt_clean(text)
        out.append({"text": text, "clean": clean})
    write_json(os.path.join(out_dir, "clean.json"), {"cases": out, "equal_to_full": equal})
    print(f"{equal} of {count} prompts are equal with ftfy's encoding repair")
    with open(os.path.join(out_dir, "entities.json"), "w", encoding="utf-8") as file:
        names = ["&" + name for name in html.entities.html5]
        names += [name.upper() for name in names]
        names += [f"&#{code};" for code in range(0, 0x3100)]
        names += [f"&#x{code:x}" for code in range(0xD700, 0x11000)]
        texts = [f"a{name}b" for name in names]
        json.dump([{"text": text, "clean": prompt_clean_plain(text, plain)} for text in texts],
                  file)


def prompt_clean_plain(text, plain):
    return whitespace_clean(html.unescape(html.unescape(ftfy.fix_text(text, plain))).strip())


def main():
    out_dir = sys.argv[1]
    os.makedirs(out_dir, exist_ok=True)
    rng = random.Random(20)
    for name, tokenizer_class, count in make_folders(out_dir, rng):
        tokenizer = tokenizer_class.from_pretrained(os.path.join(out_dir, name))
        write_cases(out_dir, name, tokenizer, rng, count)
    write_clean(out_dir, rng, 3000)


if __name__ == "__main__":
    main()
