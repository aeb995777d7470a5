"""Writes small random AutoencoderKLWan folders with what diffusers computes from them.

usage: make_vae.py OUT_DIR

OUT_DIR/CASE/{config.json, diffusion_pytorch_model.safetensors, golden.safetensors}. Tensors are
named NAME.INPUT and NAME.OUTPUT; see `golden_for`. OUT_DIR/shapes.json: the shapes of all
parameters at the sizes of Wan2.1.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

CASES = {
    # diffusers' own test configuration
    "plain": dict(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ),
    "wide": dict(
        base_dim=12, z_dim=4, dim_mult=[1, 2, 3], num_res_blocks=2,
        temperal_downsample=[True, True], scale_factor_spatial=4,
        latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[1.1, 0.7, 2.3, 0.9],
    ),
    "odd": dict(
        base_dim=5, decoder_base_dim=7, z_dim=3, dim_mult=[1, 3, 2, 4], num_res_blocks=1,
        temperal_downsample=[True, False, True], dropout=0.1, in_channels=4, out_channels=5,
    ),
    "flat": dict(
        base_dim=3, z_dim=2, dim_mult=[2], num_res_blocks=2, temperal_downsample=[],
        scale_factor_temporal=1, scale_factor_spatial=1,
    ),
    "still": dict(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        attn_scales=[0.3], scale_factor_temporal=1, scale_factor_spatial=2,
    ),
    # The list is longer than the network: the decoder reads it from its end.
    "long": dict(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True, True], scale_factor_spatial=4,
    ),
}


def randomize(vae):
    """Norm weights away from 1 and outputs large enough that the clamps are met."""
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape))
            if "conv_out" in name:
                parameter.mul_(2)


def uniform(*shape):
    return torch.rand(*shape) * 2 - 1


def encode(vae, golden, name, video):
    distribution = vae.encode(video).latent_dist
    golden[f"{name}.video"] = video
    golden[f"{name}.mean"] = distribution.mean.contiguous()
    golden[f"{name}.logvar"] = distribution.logvar.contiguous()
    return distribution


def decode(vae, golden, name, latents):
    golden[f"{name}.latents"] = latents
    golden[f"{name}.decoded"] = vae.decode(latents).sample.contiguous()


def set_tiling(vae, tile_height, tile_width, stride_height, stride_width):
    vae.use_tiling = True
    vae.tile_sample_min_height, vae.tile_sample_min_width = tile_height, tile_width
    vae.tile_sample_stride_height, vae.tile_sample_stride_width = stride_height, stride_width


def add_tiled(vae, golden, channels):
    r = vae.config.scale_factor_spatial
    tilings = {
        "overlap": ((7, 9), (3, 4, 2, 2)),
        "quarter": ((7, 10), (4, 4, 3, 3)),
        "wide": ((4, 9), (4, 4, 3, 3)),
        "uneven": ((9, 5), (4, 6, 1, 5)),
    }
    for name, ((height, width), tiling) in tilings.items():
        pixels = torch.tensor([size * r for size in tiling])
        golden[f"tiled_{name}.tiling"] = pixels
        set_tiling(vae, *pixels.tolist())
        video = uniform(1, channels, 5, height * r, width * r)
        mean = encode(vae, golden, f"tiled_{name}", video).mean
        decode(vae, golden, f"tiled_{name}", torch.randn(1, mean.shape[1], 3, height, width))
    vae.use_tiling = False


def add_gradients(vae, golden, channels, r):
    """In fp64, since small channel counts give steep norms."""
    vae = copy.deepcopy(vae).double()
    video = uniform(1, channels, 9, 3 * r, 2 * r).double().requires_grad_()
    with torch.enable_grad():
        decoded = vae.decode(vae.encode(video).latent_dist.mean).sample
        decoded.square().mean().backward()
    golden["gradient.video"] = video.detach()
    golden["gradient.of_video"] = video.grad
    parameters = dict(vae.named_parameters())
    for name in ["encoder.conv_in.weight", "encoder.mid_block.attentions.0.norm.gamma",
                 "decoder.norm_out.gamma"]:
        golden[f"gradient.{name}"] = parameters[name].grad


def add_half(vae, golden, channels, r):
    """bfloat16, and fp64 on the same rounded weights and input."""
    half = copy.deepcopy(vae).to(torch.bfloat16)
    latents = torch.randn(1, vae.config.z_dim, 3, 3, 4).bfloat16()
    video = uniform(1, channels, 5, 3 * r, 4 * r).bfloat16()
    for name, model in {"bf16": half, "exact": copy.deepcopy(half).double()}.items():
        dtype = next(model.parameters()).dtype
        decode(model, golden, name, latents.to(dtype))
        encode(model, golden, name, video.to(dtype))


def golden_for(vae):
    config = vae.config
    channels, r = config.in_channels, 2 ** (len(config.dim_mult) - 1)
    golden = {}
    sizes = [(1, 1, 3 * r, 5 * r), (5, 2, 4 * r, 3 * r), (17, 1, 2 * r + r // 2, 4 * r + r - 1)]
    for frames, batch, height, width in sizes:
        name = f"frames{frames}"
        distribution = encode(vae, golden, name, uniform(batch, channels, frames, height, width))
        decode(vae, golden, name, torch.randn(distribution.mean.shape))
    golden["sample.seed7"] = distribution.sample(torch.Generator().manual_seed(7))  # of frames17
    golden["zero.latents"] = torch.zeros(1, config.z_dim, 2, 2, 2)
    golden["zero.decoded"] = vae.decode(golden["zero.latents"]).sample.contiguous()
    if len(config.latents_mean) == config.z_dim:
        mean = torch.tensor(config.latents_mean).view(1, config.z_dim, 1, 1, 1)
        std = 1.0 / torch.tensor(config.latents_std).view(1, config.z_dim, 1, 1, 1)
        golden["statistics.latents"] = torch.randn(2, config.z_dim, 2, 3, 5)
        golden["statistics.normalized"] = (golden["statistics.latents"] - mean) * std
        golden["statistics.denormalized"] = golden["statistics.latents"] / std + mean
    if config.scale_factor_spatial == r:
        add_tiled(vae, golden, channels)
    add_gradients(vae, golden, channels, r)
    add_half(vae, golden, channels, r)
    return golden


def main():
    torch.set_num_threads(1)  # the convolutions are too small to share
    out = Path(sys.argv[1])
    for seed, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(**config).eval()
        randomize(vae)
        vae.save_pretrained(out / name)
        with torch.no_grad():
            golden = golden_for(vae)
        save_file({key: value.contiguous() for key, value in golden.items()},
                  out / name / "golden.safetensors")
    with torch.device("meta"):
        parameters = AutoencoderKLWan().state_dict()
    shapes = {name: list(value.shape) for name, value in parameters.items()}
    (out / "shapes.json").write_text(json.dumps(shapes))


if __name__ == "__main__":
    main()
