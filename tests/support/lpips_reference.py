"""LPIPS with random networks, in fp64: Zhang et al., 2018, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", section 3, with the names of Python's package lpips."""

import torch
from torch.nn.functional import conv2d, max_pool2d

# Of each stage: (index, out, in, side of the kernel) of its convolutions.
ALEX = [[(0, 64, 3, 11)], [(3, 192, 64, 5)], [(6, 384, 192, 3)], [(8, 256, 384, 3)],
        [(10, 256, 256, 3)]]
VGG = [[(0, 64, 3, 3), (2, 64, 64, 3)],
       [(5, 128, 64, 3), (7, 128, 128, 3)],
       [(10, 256, 128, 3), (12, 256, 256, 3), (14, 256, 256, 3)],
       [(17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3)],
       [(24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3)]]
SHIFT = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
SCALE = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)


def random_tensors(stages):
    """In fp16, so that files are small."""
    tensors = {}
    for i, stage in enumerate(stages):
        for index, features, channels, side in stage:
            name = f"net.slice{i + 1}.{index}"
            deviation = (2 / (channels * side * side)) ** 0.5
            tensors[f"{name}.weight"] = torch.randn(features, channels, side, side) * deviation
            tensors[f"{name}.bias"] = torch.randn(features) * 0.1
        tensors[f"lin{i}.model.1.weight"] = torch.rand(1, stage[-1][1], 1, 1)
    return {name: tensor.half() for name, tensor in tensors.items()}


def features(stages, tensors, picture):
    x = (picture.permute(2, 0, 1)[None].double() / 127.5 - 1 - SHIFT) / SCALE
    for i, stage in enumerate(stages):
        if stages is ALEX and i in (1, 2):
            x = max_pool2d(x, 3, 2)
        if stages is VGG and i > 0:
            x = max_pool2d(x, 2, 2)
        for index, _, _, side in stage:
            name = f"net.slice{i + 1}.{index}"
            step, border = {11: (4, 2), 5: (1, 2), 3: (1, 1)}[side]
            x = conv2d(x, tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double(),
                       step, border).relu()
        yield x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)


def lpips(stages, tensors, a, b):
    """The distance of two pictures of bytes, [height, width, 3]."""
    total = 0
    pairs = zip(features(stages, tensors, a), features(stages, tensors, b))
    for i, (f, g) in enumerate(pairs):
        weights = tensors[f"lin{i}.model.1.weight"].double()
        total += ((f - g).pow(2) * weights).sum(1).mean()
    return float(total)
