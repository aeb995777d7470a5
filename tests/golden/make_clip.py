"""CLIP vision towers of random weights, their hidden states, and pictures made ready for them."""

import json
import os
import sys

import numpy as np
import PIL.Image
import torch
from diffusers.video_processor import VideoProcessor
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

TOWERS = {
    "head12": dict(
        hidden_size=24,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="quick_gelu",
    ),
    "head64": dict(
        hidden_size=128,
        intermediate_size=200,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
        hidden_act="gelu",
    ),
    "head80": dict(
        hidden_size=160,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    ),
    "ragged": dict(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=30,
        patch_size=8,
        hidden_act="gelu_new",
    ),
    "projected": dict(
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
        hidden_act="gelu_pytorch_tanh",
        projection_dim=12,
    ),
}
ACTIVATIONS = [
    "quick_gelu",
    "gelu",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_new",
    "gelu_accurate",
    "gelu_fast",
    "relu",
    "relu2",
    "silu",
    "swish",
    "mish",
    "sigmoid",
    "tanh",
]
PROCESSORS = {
    "default": {},
    "square": {"size": {"height": 40, "width": 30}, "crop_size": {"height": 32, "width": 32}},
    "edge": {"size": 28, "crop_size": 28},
    "edges": {"size": {"shortest_edge": 50, "longest_edge": 64}, "do_center_crop": False},
    "box": {"size": {"max_height": 48, "max_width": 60}, "crop_size": [33, 50]},
    "bilinear": {"resample": 2, "size": {"shortest_edge": 61}, "crop_size": 71},
    "nearest": {
        "resample": 0,
        "size": {"shortest_edge": 61},
        "crop_size": {"height": 60, "width": 61},
    },
    "raw": {"do_resize": False, "do_rescale": False, "crop_size": 45},
    "plain": {"do_normalize": False, "size": {"shortest_edge": 32}, "crop_size": 32},
    "bytes": {
        "do_normalize": False,
        "do_rescale": False,
        "size": {"shortest_edge": 32},
        "crop_size": 32,
    },
    "values": {
        "image_mean": 0.5,
        "image_std": [0.3, 0.4, 0.5],
        "rescale_factor": 0.01,
        "crop_size": 224,
    },
    "big_square": {"default_to_square": True, "size": 64, "crop_size": 64},
}
SIZES = [(37, 61), (61, 37), (300, 227), (224, 224), (50, 50), (17, 130)]


def randomize(model, generator):
    """Weights that make every part matter; the library's own initial biases are zero."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                value.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif value.ndim < 2:
                value.copy_(0.3 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)


def make_towers(out, generator):
    results = {}
    for name, options in TOWERS.items():
        config = CLIPVisionConfig(**options)
        maker = CLIPVisionModelWithProjection if name == "projected" else CLIPVisionModel
        model = maker(config).eval()
        randomize(model, generator)
        model.save_pretrained(os.path.join(out, name))
        size = options["image_size"]
        pixels = torch.randn(2, 3, size, size, generator=generator)
        with torch.no_grad():
            states = model(pixels, output_hidden_states=True).hidden_states
            tower = model.vision_model if name == "projected" else model
            results[f"{name}.pooled"] = tower(pixels).pooler_output
            results[f"{name}.half"] = (
                model.to(torch.bfloat16)(pixels, output_hidden_states=True)
                .hidden_states[-2]
                .float()
            )
        results[f"{name}.pixels"] = pixels
        for index, state in enumerate(states):
            results[f"{name}.state{index}"] = state
    # The vision half of a whole CLIP model, which CLIPVisionModel.from_pretrained takes as well.
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            vocab_size=10,
        ).to_dict(),
        vision_config=CLIPVisionConfig(**TOWERS["head12"]).to_dict(),
        projection_dim=6,
    )
    whole = CLIPModel(config)
    randomize(whole, generator)
    whole.save_pretrained(os.path.join(out, "whole"))
    results["whole.pixels"] = torch.randn(1, 3, 28, 28, generator=generator)
    with torch.no_grad():
        model = CLIPVisionModel.from_pretrained(os.path.join(out, "whole")).eval()
        results["whole.state2"] = model(
            results["whole.pixels"], output_hidden_states=True
        ).hidden_states[-2]
    x = torch.randn(50, generator=generator) * 3
    results["activation.x"] = x
    from transformers.activations import ACT2FN

    for name in ACTIVATIONS:
        results[f"activation.{name}"] = ACT2FN[name](x)
    save_file(
        {key: value.contiguous().clone() for key, value in results.items()},
        os.path.join(out, "towers.safetensors"),
    )


def picture(height, width, rng):
    """Noise over a gradient, so that a wrong filter and a wrong offset both show."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 3 + y / 5)], -1)
    return np.clip(base + rng.normal(0, 40, base.shape), 0, 255).astype(np.uint8)


def make_pictures(out):
    rng = np.random.default_rng(7)
    results = {}
    for index, (height, width) in enumerate(SIZES):
        pixels = picture(height, width, rng)
        image = PIL.Image.fromarray(pixels)
        results[f"picture{index}"] = torch.from_numpy(pixels)
        for name, options in PROCESSORS.items():
            processor = CLIPImageProcessor(**options)
            value = processor(images=image, return_tensors="pt")["pixel_values"]
            results[f"{name}.{index}"] = value.to(torch.float32)
        for size in ((48, 80), (64, 32)):
            value = VideoProcessor(vae_scale_factor=8).preprocess(
                image, height=size[0], width=size[1]
            )
            results[f"video{size[0]}.{index}"] = value
    save_file(
        {key: value.contiguous() for key, value in results.items()},
        os.path.join(out, "pictures.safetensors"),
    )
    for name, options in PROCESSORS.items():
        folder = os.path.join(out, "processors", name)
        CLIPImageProcessor(**options).save_pretrained(folder)
        with open(os.path.join(folder, "given.json"), "w") as file:
            json.dump(options, file)


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    make_towers(out, torch.Generator().manual_seed(11))
    make_pictures(out)


main()
