"""Writes safetensors files with Python's writers, or checks a file that fovea has written.

usage: make_safetensors.py OUT_DIR
       make_safetensors.py OUT_DIR FILE

OUT_DIR/all.safetensors   one tensor of random bits per element type, a scalar, an empty tensor
OUT_DIR/all.json          {name: {"shape": [...], "hex": bytes as stored}} of the same tensors
OUT_DIR/{single,sharded,bf16}/  one tiny model as diffusers saves it: one file, shards, bf16 shards
OUT_DIR/model.json        {"parameters": count, "tensors": count}

With FILE: ends with an error unless FILE holds the tensors of all.safetensors bit for bit.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_bits(dtype, shape, generator):
    size = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    count = torch.Size(shape).numel()
    data = torch.randint(0, high, (count * size,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def make_all(out):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{name}.\u00fc": random_bits(dtype, (3, 5), generator) for name, dtype in TYPES.items()
    }
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty((0, 7), dtype=torch.float16)
    save_file(tensors, out / "all.safetensors", metadata={"format": 'p"t'})
    record = {name: {"shape": list(t.shape), "hex": raw(t).hex()} for name, t in tensors.items()}
    (out / "all.json").write_text(json.dumps(record))


def make_model(out):
    from diffusers import WanTransformer3DModel  # here, because a check needs no such long start

    torch.manual_seed(2)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    model.save_pretrained(out / "single")
    model.save_pretrained(out / "sharded", max_shard_size="30KB")
    record = {"parameters": model.num_parameters(), "tensors": len(model.state_dict())}
    (out / "model.json").write_text(json.dumps(record))
    model.to(torch.bfloat16).save_pretrained(out / "bf16", max_shard_size="20KB")


def check(out, path):
    expected, got = load_file(out / "all.safetensors"), load_file(path)
    assert expected.keys() == got.keys(), (expected.keys(), got.keys())
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype and tensor.shape == got[name].shape, name
        assert raw(tensor) == raw(got[name]), name


def main():
    out = Path(sys.argv[1])
    if len(sys.argv) > 2:
        check(out, sys.argv[2])
        return
    out.mkdir(parents=True, exist_ok=True)
    make_all(out)
    make_model(out)


if __name__ == "__main__":
    main()
