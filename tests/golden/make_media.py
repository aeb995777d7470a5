"""Pictures in many PNG, JPEG and BMP variants with what PIL makes of them, and PIL's resizes.

Writes NAME.png|jpg|bmp with NAME.expected.png (8-bit RGB) for reading, IN.png and OUT.png pairs for
resizing, and cases.json that lists both.
"""
import json
import pathlib
import random
import struct
import sys
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps

if int(PIL.__version__.split(".")[0]) < 13:
    sys.exit("Pillow 13 or newer is needed: older ones resize in another order of passes")

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(7)
random.seed(7)
cases = {"exact": [], "jpeg": [], "oriented": [], "resize": []}


def smooth(height, width, channels):
    """A picture with edges, gradients and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        127 + 90 * np.sin(x / (5 + 3 * c) + y / 9) + 35 * ((x // 8 + y // 8 + c) % 2)
        for c in range(channels)
    ]
    noise = rng.normal(0, 4, (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack_rows(samples, depth):
    """Rows of samples [h, w * channels], filter byte 0 first."""
    rows = b""
    for row in samples:
        if depth == 16:
            rows += b"\0" + row.astype(">u2").tobytes()
        else:
            bits = "".join(format(int(v), f"0{depth}b") for v in row)
            bits += "0" * (-len(bits) % 8)
            rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return rows


def raw_png(height, width, color, depth, interlace, transparency):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    samples = rng.integers(0, 1 << depth, (height, width, channels))
    data = b""
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1)]
    for y, x, dy, dx in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            data += pack_rows(part.reshape(part.shape[0], -1), depth)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if color == 3:
        file += chunk(b"PLTE", rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes())
    if transparency:
        if color == 3:
            file += chunk(b"tRNS", rng.integers(0, 256, 1 << depth, dtype=np.uint8).tobytes())
        else:
            file += chunk(b"tRNS", samples[0, 0].astype(">u2").tobytes())
    return file + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def keep(group, name):
    pixels = np.asarray(Image.open(out / name).convert("RGB"))
    Image.fromarray(pixels).save(out / f"{name}.expected.png")
    cases[group].append(name)


depths = {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}
for color, color_depths in depths.items():
    for depth in color_depths:
        for interlace in (0, 1):
            for transparency in ((0, 1) if color in (0, 2, 3) else (0,)):
                name = f"c{color}d{depth}i{interlace}t{transparency}.png"
                height, width = random.randint(1, 23), random.randint(1, 23)
                data = raw_png(height, width, color, depth, interlace, transparency)
                (out / name).write_bytes(data)
                keep("exact", name)

for mode in ("1", "L", "P", "RGB", "RGBA"):
    for width in (1, 2, 3, 17, 32):
        name = f"{mode}_{width}.bmp"
        Image.fromarray(smooth(9, width, 3)).convert(mode).save(out / name)
        keep("exact", name)

for subsampling in (0, 1, 2):
    for progressive in (False, True):
        name = f"s{subsampling}p{int(progressive)}.jpg"
        picture = Image.fromarray(smooth(61, 83, 3))
        picture.save(out / name, quality=90, subsampling=subsampling, progressive=progressive)
        keep("jpeg", name)
Image.fromarray(smooth(40, 33, 1)[..., 0]).save(out / "grey.jpg", quality=90)
keep("jpeg", "grey.jpg")
Image.fromarray(smooth(40, 33, 3)).convert("CMYK").save(out / "cmyk.jpg", quality=95)
keep("jpeg", "cmyk.jpg")
Image.fromarray(smooth(64, 64, 3)).save(out / "restart.jpg", quality=90, restart_marker_blocks=3)
keep("jpeg", "restart.jpg")

for orientation in range(1, 9):
    for kind in ("jpg", "png"):
        picture = Image.fromarray(smooth(7, 12, 3))
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"o{orientation}.{kind}"
        picture.save(out / name, exif=exif)
        # Turned from the samples as PIL decodes them, so that only the turn is compared.
        turned = ImageOps.exif_transpose(Image.open(out / name)).convert("RGB")
        turned.save(out / f"{name}.expected.png")
        cases["oriented"].append({"name": name, "orientation": orientation})

# Small files that unpack to 50 MB: as pixels, as text.
small = Image.fromarray(smooth(2, 2, 3))
small.save(out / "small.png")
start = (out / "small.png").read_bytes()[:33]
ending = (out / "small.png").read_bytes()[33:]
zeros = zlib.compress(bytes(50_000_000))
(out / "pixel_bomb.png").write_bytes(start + chunk(b"IDAT", zeros) + chunk(b"IEND", b""))
(out / "text_bomb.png").write_bytes(start + chunk(b"zTXt", b"Comment\0\0" + zeros) + ending)
text = zlib.compress("packed ü".encode("latin-1"))
itext = zlib.compress("packed 🐈".encode())
(out / "packed_text.png").write_bytes(
    start + chunk(b"zTXt", b"A\0\0" + text) + chunk(b"iTXt", b"B\0\1\0de\0\0" + itext) + ending)

filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
for index in range(240):
    low, high = ((1, 12), (5, 90), (60, 400))[index % 3]
    height, width = random.randint(low, high), random.randint(low, high)
    new_height, new_width = random.randint(1, 300), random.randint(1, 300)
    if index % 4 == 0:  # around the threshold of the order of passes
        new_height = max(height - random.randint(1, 20), 1)
        new_width = max(width - (height - new_height) // 2 + random.randint(-1, 1), 1)
    if index % 10 == 0:
        new_height = height
    if index % 15 == 0:
        new_width = width
    noise = rng.integers(0, 2, (height, width, 3)) * 255
    pixels = smooth(height, width, 3) if index % 2 else noise.astype(np.uint8)
    Image.fromarray(pixels).save(out / f"in{index}.png")
    name, resample = list(filters.items())[index // 3 % 3]
    Image.fromarray(pixels).resize((new_width, new_height), resample).save(out / f"out{index}.png")
    cases["resize"].append({"in": f"in{index}.png", "out": f"out{index}.png", "filter": name})

(out / "cases.json").write_text(json.dumps(cases))
