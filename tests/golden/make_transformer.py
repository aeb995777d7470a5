#!/usr/bin/env python3
"""make_transformer.py OUT: forwards of diffusers' WanTransformer3DModel with random weights.

OUT/cases.json lists the cases. For each of them OUT/<name>/ is a model folder (config.json and
diffusion_pytorch_model.safetensors) and OUT/<name>.safetensors holds
  hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image   inputs (the last
                one for I2V only); timestep is int64 or fp32 [batch]
  output        fp32 [batch, out_channels, t, h, w]
and, to find where a difference begins,
  temb, timestep_proj   of the condition embedder
  text, image           embedded text and image tokens
  patches               [batch, tokens, width] after the patch embedding
  block0                [batch, tokens, width] after the first block
"""

import json
import pathlib
import sys

import torch
from make_wan_folder import make_transformer
from safetensors.torch import save_file

BASE = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12,
        "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 64, "ffn_dim": 40,
        "num_layers": 2, "rope_max_seq_len": 32}
CLIP = {"image_dim": 20, "added_kv_proj_dim": 24, "in_channels": 9}

# name -> (changes to BASE, batch, latent size, text tokens, image tokens, timestep)
CASES = {
    "head12": ({}, 1, (2, 6, 10), 7, None, 999),
    "head12_float": ({}, 2, (3, 4, 6), 512, None, 503.25),
    "head64": ({"attention_head_dim": 64, "num_attention_heads": 1}, 1, (5, 6, 6), 9, None, 17),
    "head128": ({"attention_head_dim": 128, "num_layers": 1}, 2, (1, 10, 14), 5, None, 250),
    "head40": ({"attention_head_dim": 40, "num_attention_heads": 3}, 1, (2, 6, 6), 6, None, 0),
    "no_cross_norm": ({"cross_attn_norm": False, "eps": 1e-5}, 1, (3, 6, 6), 8, None, 731),
    "no_qk_norm": ({"qk_norm": None}, 1, (2, 4, 6), 8, None, 80),
    "patch1": ({"patch_size": (1, 1, 1), "freq_dim": 32}, 1, (3, 5, 7), 4, None, 640),
    "patch2": ({"patch_size": (2, 2, 2), "text_dim": 24, "out_channels": 6}, 2, (4, 6, 10), 3,
               None, 42.5),
    "i2v_clip": (CLIP, 1, (2, 6, 6), 512, 17, 333),
    "i2v_clip_batch": ({**CLIP, "attention_head_dim": 64, "added_kv_proj_dim": 128}, 2, (1, 6, 10),
                       512, 5, 871),
    "i2v_pos_embed": ({**CLIP, "pos_embed_seq_len": 10}, 2, (2, 4, 4), 512, 5, 120),
    "i2v_no_clip": ({"in_channels": 9}, 1, (2, 6, 10), 512, None, 555),
}


def make_inputs(config, batch, size, text_tokens, image_tokens, timestep, generator):
    def normal(*shape):
        return torch.randn(shape, generator=generator)

    dtype = torch.int64 if isinstance(timestep, int) else torch.float32
    # The second item of a batch is at another time.
    times = [timestep if i == 0 else timestep / 2 for i in range(batch)]
    inputs = {"hidden_states": normal(batch, config["in_channels"], *size),
              "timestep": torch.tensor(times).to(dtype),
              "encoder_hidden_states": normal(batch, text_tokens, config["text_dim"])}
    if image_tokens:
        # A position table cuts the tokens of two pictures (first and last frame) into its length.
        rows = 2 * batch if config.get("pos_embed_seq_len") else batch
        inputs["encoder_hidden_states_image"] = normal(rows, image_tokens, config["image_dim"])
    return inputs


def trace(model):
    """Keeps what the first parts of the network return; the dict fills during a forward."""
    kept = {}

    def keep_condition(module, inputs, output):
        kept.update(zip(("temb", "timestep_proj", "text", "image"), output))

    def keep_patches(module, inputs, output):
        kept["patches"] = output.flatten(2).transpose(1, 2)

    def keep_block(module, inputs, output):
        kept["block0"] = output

    model.condition_embedder.register_forward_hook(keep_condition)
    model.patch_embedding.register_forward_hook(keep_patches)
    model.blocks[0].register_forward_hook(keep_block)
    return kept


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed, (name, (changes, batch, size, text, image, timestep)) in enumerate(CASES.items()):
        generator = torch.Generator("cpu").manual_seed(seed)
        config = {**BASE, **changes}
        model = make_transformer(generator, **config)
        model.save_pretrained(out / name)
        inputs = make_inputs(config, batch, size, text, image, timestep, generator)
        kept = trace(model)
        output = model(**inputs).sample
        tensors = {**inputs, **kept, "output": output}
        save_file({key: value.contiguous().clone() for key, value in tensors.items()
                   if value is not None}, out / f"{name}.safetensors")
        cases.append({"name": name, "batch": batch, "latent_size": list(size),
                      "text_tokens": text, "image_tokens": image or 0})
    (out / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    torch.set_grad_enabled(False)
    main(pathlib.Path(sys.argv[1]))
