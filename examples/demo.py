"""Restore one photo with the model that ships inside GenDR and show it beside plain bicubic.

Usage: ``demo.py PHOTO``; the picture lands in out/ at the top of the repository.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendr_core import load_unet, restore

OUT = Path(__file__).parents[1] / "out"
GAP_PX = 8


def main(photo: Path) -> None:
    """Write the picture and say where it is."""
    with Image.open(photo) as opened:
        before = opened.convert("RGB")
    image = torch.from_numpy(np.asarray(before, dtype=np.float32) / 255)[None]  # [1, H, W, 3] in [0, 1]

    unet = load_unet()
    started = time.perf_counter()
    restored = restore(image, unet)
    seconds = time.perf_counter() - started

    after = Image.fromarray((restored[0].numpy() * 255).round().astype(np.uint8))
    picture = Image.new("RGB", (2 * after.width + GAP_PX, after.height), "white")
    picture.paste(before.resize(after.size, Image.Resampling.BICUBIC), (0, 0))
    picture.paste(after, (after.width + GAP_PX, 0))
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{photo.stem}-before-after.png"
    picture.save(path)
    print(f"{before.width}x{before.height} -> {after.width}x{after.height} in {seconds:.2f} s")
    print(f"bicubic left, GenDR right: {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
