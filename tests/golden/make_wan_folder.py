#!/usr/bin/env python3
"""Writes tiny random Wan2.1 model folders in the layout of diffusers.

As a program:  make_wan_folder.py OUT   writes the folder that ships as assets/models/tiny-random.
As a module:   make_wan_folder(out_dir, seed=..., head_dim=..., ...) writes any variant for a test.

Nothing is downloaded: the tokenizer is trained here on rendered-scene captions, and every weight
is drawn at random, scaled so that activations keep their size through the layers and the decoded
video has contrast.
"""

import io
import itertools
import json
import os
import pathlib
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

COLOURS = ["red", "green", "blue", "yellow", "white", "orange", "purple", "cyan"]
SOLIDS = ["sphere", "cube", "cylinder", "cone", "torus", "pyramid"]
MOTIONS = ["rolls left", "rolls right", "spins", "bounces", "slides away", "rises slowly", "rests"]
CAMERAS = ["static camera", "camera orbits left", "camera moves closer", "camera pans right"]


def captions():
    """Sentences of the rendered world, the text the tokenizer is trained on."""
    out = []
    for index, (colour, solid, motion) in enumerate(itertools.product(COLOURS, SOLIDS, MOTIONS)):
        camera = CAMERAS[index % len(CAMERAS)]
        other = f"a {COLOURS[(index * 3 + 1) % 8]} {SOLIDS[(index * 5 + 2) % 6]}"
        deed = MOTIONS[(index * 2 + 3) % len(MOTIONS)]
        out.append(f"a {colour} {solid} {motion}, {camera}")
        out.append(f"a {colour} {solid} {motion} and {other} {deed}, {camera}")
    return out


def make_tokenizer(out_dir, vocab_size=256):
    """Trains a Unigram vocabulary and saves it as transformers does (`tokenizer.json`)."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions()), model_writer=model, model_type="unigram",
        vocab_size=vocab_size, hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc", num_threads=1, minloglevel=2)
    source = pathlib.Path(out_dir) / "sentencepiece"
    source.mkdir(parents=True)
    (source / "spiece.model").write_bytes(model.getvalue())
    # T5Tokenizer's own constructor ignores its vocabulary file in transformers 5.
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = T5Tokenizer.from_pretrained(source)
    shutil.rmtree(source)
    return tokenizer


def randomize(module, generator, gain=1.0):
    """Draws every parameter anew: weights N(0, gain² / fan_in), norms near 1, small biases."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("gamma") or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                value.copy_(0.1 * noise)
            elif name.endswith("scale_shift_table"):
                value.copy_(0.3 * noise)
            elif "embedding" in name.lower() or name.endswith("shared.weight"):
                # Tables are looked up: unit rows; the patch convolution is a matrix.
                fan_in = value[0].numel() if "patch_embedding" in name else 1
                value.copy_(noise / fan_in**0.5)
            else:
                value.copy_(gain * noise / value[0].numel() ** 0.5)
    return module


def make_text_encoder(generator, vocab_size, dim=32, num_layers=2):
    config = UMT5Config(vocab_size=vocab_size, d_model=dim, d_kv=8, d_ff=64, num_layers=num_layers,
                        num_heads=4, relative_attention_num_buckets=8,
                        relative_attention_max_distance=20, is_gated_act=True,
                        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
                        decoder_start_token_id=0)
    encoder = randomize(UMT5EncoderModel(config), generator)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                value.mul_(config.d_kv**-0.5)  # T5 does not divide q·k by sqrt(head_dim)
    return encoder.eval()


def make_transformer(generator, **config):
    """A `WanTransformer3DModel` of the given config with random weights, in eval mode."""
    return randomize(WanTransformer3DModel(**config), generator).eval()


def make_vae(generator, base_dim=4, z_dim=16, contrast=0.45, **config):
    """A random `AutoencoderKLWan` whose decoder gives pictures with a standard deviation near
    `contrast` (range -1 to 1) for unit-normal latents."""
    options = {"base_dim": base_dim, "z_dim": z_dim, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
               "temperal_downsample": [False, True, True]}
    vae = randomize(AutoencoderKLWan(**{**options, **config}), generator).eval()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = torch.randn((1, z_dim, 2, 4, 4), generator=generator)
    layer = vae.decoder.conv_out
    with torch.no_grad():
        layer.bias.zero_()
        # The output is clamped to [-1, 1]: look at it far below the clamp.
        layer.weight.mul_(1e-3)
        seen = vae.decode(latents * std + mean).sample.std()
        layer.weight.mul_(contrast / seen)
    return vae


def make_image_encoder(generator, hidden_size=32, image_size=32):
    """A random CLIP image encoder and its preprocessing; 4 × 4 patches and a class token."""
    from transformers import CLIPImageProcessor

    config = CLIPVisionConfig(hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=3,
                              num_attention_heads=4, image_size=image_size, patch_size=8,
                              projection_dim=16)
    processor = CLIPImageProcessor(size={"shortest_edge": image_size},
                                   crop_size={"height": image_size, "width": image_size})
    return randomize(CLIPVisionModel(config), generator).eval(), processor


def make_scheduler(name="unipc", flow_shift=3.0):
    if name == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                       num_train_timesteps=1000, flow_shift=flow_shift)
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    raise ValueError(f"scheduler {name!r} is neither 'unipc' nor 'euler'")


def make_wan_folder(out_dir, seed=0, head_dim=12, num_heads=2, num_layers=2, i2v=False,
                    image_encoder=True, scheduler="unipc", flow_shift=3.0, text_dim=32,
                    transformer=None, vae=None):
    """Writes a Wan2.1 folder of random weights and returns the pipeline it was saved from.

    i2v            image-to-video: 36 input channels; with `image_encoder` a CLIP encoder as well
    scheduler      "unipc" or "euler"
    transformer    further keys of the transformer's config.json, vae likewise
    """
    out_dir = pathlib.Path(out_dir)
    generator = torch.Generator("cpu").manual_seed(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(out_dir)
    clip = i2v and image_encoder
    config = {"patch_size": (1, 2, 2), "num_attention_heads": num_heads,
              "attention_head_dim": head_dim, "in_channels": 36 if i2v else 16, "out_channels": 16,
              "text_dim": text_dim, "freq_dim": 64, "ffn_dim": 3 * head_dim * num_heads,
              "num_layers": num_layers, "rope_max_seq_len": 64,
              "image_dim": 32 if clip else None,
              "added_kv_proj_dim": head_dim * num_heads if clip else None}
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(generator, len(tokenizer), text_dim),
        "transformer": make_transformer(generator, **{**config, **(transformer or {})}),
        "vae": make_vae(generator, **(vae or {})),
        "scheduler": make_scheduler(scheduler, flow_shift),
    }
    if clip:
        parts["image_encoder"], parts["image_processor"] = make_image_encoder(generator)
    pipeline = (WanImageToVideoPipeline if i2v else WanPipeline)(**parts)
    pipeline.save_pretrained(out_dir)
    return pipeline


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    make_wan_folder(sys.argv[1], seed=20, head_dim=16)
