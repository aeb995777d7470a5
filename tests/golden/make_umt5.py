"""Writes tiny random T5 and UMT5 encoders with the hidden states and prompt embeddings that
transformers and diffusers give.

usage: make_umt5.py OUT_DIR

OUT_DIR/NAME/                   config.json and weights
OUT_DIR/NAME/class.txt          class of the encoder
OUT_DIR/NAME/golden.safetensors ids [2, L], valid_len [2], hidden [2, L, d_model]; alone: the first
                                row's valid tokens by themselves; bf16, fp16: of those dtypes
OUT_DIR/pipeline/               tokenizer/, text_encoder/, prompts.json, golden.safetensors
"""

import json
import os
import shutil
import sys
import types

import sentencepiece
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

PROMPTS = ["A red sphere rolls left &amp; a blue cube spins, static camera",
           "  “curly”   quotes\n\tand ﬁne ligatures </s> inside  ", "", "猫が好き 😀 " * 40]


def randomize(model, generator):
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "layer_norm" in name:
                value.copy_(1 + 0.2 * noise)
            elif "shared" in name or "relative_attention_bias" in name:
                value.copy_(noise)
            else:
                value.copy_(noise / value.shape[-1] ** 0.5)
            if name.endswith("SelfAttention.q.weight"):
                value.mul_(model.config.d_kv ** -0.5)
    return model.eval()


def hidden_states(model, ids, valid):
    mask = (torch.arange(ids.shape[1])[None] < valid[:, None]).long()
    with torch.no_grad():
        return model(ids, mask).last_hidden_state


def write_variant(out_dir, name, model_class, config, generator, length=37):
    folder = os.path.join(out_dir, name)
    model = randomize(model_class(config), generator)
    model.save_pretrained(folder)
    ids = torch.randint(3, config.vocab_size, (2, length), generator=generator)
    valid = torch.tensor([length - 9, length])
    ids[0, length - 9:] = 0
    data = {"ids": ids, "valid_len": valid, "hidden": hidden_states(model, ids, valid),
            "alone": hidden_states(model, ids[:1, :length - 9].contiguous(), valid[:1])}
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = model_class.from_pretrained(folder, dtype=dtype).eval()
        data[key] = hidden_states(half, ids, valid).float()
    save_file(data, os.path.join(folder, "golden.safetensors"))
    with open(os.path.join(folder, "class.txt"), "w", encoding="utf-8") as out:
        out.write(model_class.__name__)


def edit_config(out_dir, name, source, **keys):
    """A copy of a variant's folder whose config.json says the same in other words."""
    folder, origin = os.path.join(out_dir, name), os.path.join(out_dir, source)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(origin, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config = {key: value for key, value in {**config, **keys}.items() if value != "DROP"}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    for file in ("class.txt", "golden.safetensors"):
        shutil.copy(os.path.join(origin, file), folder)
    return load_file(os.path.join(origin, "model.safetensors"))


def save_weights(out_dir, name, weights):
    save_file(weights, os.path.join(out_dir, name, "model.safetensors"), metadata={"format": "pt"})


def write_variants(out_dir, generator):
    small = dict(vocab_size=101, d_model=24, d_ff=40, num_layers=2, num_heads=3,
                 relative_attention_num_buckets=8, relative_attention_max_distance=20)
    medium = dict(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_heads=4)
    for d_kv in (8, 12, 64, 128):
        write_variant(out_dir, f"umt5_{d_kv}", UMT5EncoderModel, UMT5Config(**small, d_kv=d_kv),
                      generator)
        write_variant(out_dir, f"t5_{d_kv}", T5EncoderModel,
                      T5Config(**small, d_kv=d_kv, feed_forward_proj="gated-gelu"), generator)
    for kind in ("relu", "gelu", "gated-silu", "gated-relu", "gelu_new", "quick_gelu",
                 "gated-tanh"):
        write_variant(out_dir, kind.replace("-", "_"), UMT5EncoderModel,
                      UMT5Config(**small, d_kv=8, feed_forward_proj=kind), generator)
    write_variant(out_dir, "t5_default", T5EncoderModel, T5Config(**medium, num_layers=3),
                  generator, 300)
    write_variant(out_dir, "odd_buckets", UMT5EncoderModel,
                  UMT5Config(**medium, num_layers=1, relative_attention_num_buckets=7,
                             relative_attention_max_distance=50, layer_norm_epsilon=1e-3),
                  generator, 140)
    write_variant(out_dir, "no_layers", UMT5EncoderModel, UMT5Config(**medium, num_layers=0),
                  generator)
    # The same encoders, told otherwise.
    weights = edit_config(out_dir, "aliases", "umt5_12", d_model="DROP", num_heads="DROP",
                          d_kv="DROP", num_layers=7, hidden_size=24, num_attention_heads=3,
                          head_dim=12, num_hidden_layers=2, feed_forward_proj="relu")
    save_weights(out_dir, "aliases", weights)
    weights = edit_config(out_dir, "embed_tokens", "t5_12")
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_weights(out_dir, "embed_tokens", weights)
    weights = edit_config(out_dir, "both_names", "t5_12")
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    weights["shared.weight"] = torch.zeros_like(weights["shared.weight"])
    save_weights(out_dir, "both_names", weights)


def write_pipeline(out_dir, generator):
    folder = os.path.join(out_dir, "pipeline")
    source = os.path.join(folder, "spiece")
    os.makedirs(source, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 20), model_prefix=os.path.join(source, "spiece"),
        vocab_size=90, model_type="unigram", hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2)
    with open(os.path.join(source, "tokenizer_config.json"), "w", encoding="utf-8") as out:
        json.dump({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, out)
    tokenizer = T5Tokenizer.from_pretrained(source)
    tokenizer.save_pretrained(os.path.join(folder, "tokenizer"))
    config = UMT5Config(vocab_size=len(tokenizer) + 5, d_model=32, d_kv=8, d_ff=64, num_layers=2,
                        num_heads=4)
    encoder = randomize(UMT5EncoderModel(config), generator)
    encoder.save_pretrained(os.path.join(folder, "text_encoder"))
    pipeline = types.SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder)
    with torch.no_grad():
        embeds = {f"embeds_{length}": WanPipeline._get_t5_prompt_embeds(
            pipeline, PROMPTS, max_sequence_length=length, device=torch.device("cpu")).contiguous()
            for length in (512, 226, 7)}
    save_file(embeds, os.path.join(folder, "golden.safetensors"))
    with open(os.path.join(folder, "prompts.json"), "w", encoding="utf-8") as out:
        json.dump(PROMPTS, out)


def main():
    out_dir = sys.argv[1]
    os.makedirs(out_dir, exist_ok=True)
    generator = torch.Generator().manual_seed(11)
    write_variants(out_dir, generator)
    write_pipeline(out_dir, generator)


if __name__ == "__main__":
    main()
