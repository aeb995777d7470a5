"""Random networks for LPIPS, ALEX.safetensors and VGG.safetensors, and pairs of pictures with their
distances."""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from lpips_reference import ALEX, VGG, lpips, random_tensors

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(11)
torch.set_num_threads(1)


def pictures(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    scene = torch.stack([127 + 90 * torch.sin(x / (5.0 + 3 * c) + y / 9) for c in range(3)], -1)
    noise = (scene + 20 * torch.randn(height, width, 3)).clamp(0, 255)
    return {"scene": scene, "noise": noise, "dark": scene * 0.4,
            "any": torch.randint(0, 256, (height, width, 3)).float()}


cases = []
for name, stages, sizes in (("alex", ALEX, [(64, 80), (31, 45), (48, 31)]),
                            ("vgg", VGG, [(32, 48), (16, 17)])):
    weights = random_tensors(stages)
    save_file(weights, out / f"{name}.safetensors")
    for height, width in sizes:
        shown = {key: value.round().byte() for key, value in pictures(height, width).items()}
        for other in ("noise", "dark", "any"):
            file = f"{name}-{height}x{width}-{other}.bin"
            (out / file).write_bytes(bytes(torch.stack([shown["scene"], shown[other]]).flatten()
                                           .tolist()))
            cases.append({"network": name, "file": file, "height": height, "width": width,
                          "lpips": lpips(stages, weights, shown["scene"], shown[other])})
(out / "cases.json").write_text(json.dumps(cases, indent=1))
