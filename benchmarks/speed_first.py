"""Speed: the first image of a fresh process, and a large photo.

Role: a part of ``speed``. Runs itself as the fresh process; until that has read its clock once, it imports nothing
that takes time.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from statistics import median
from time import time

RUNS = 3
EDGE, SCALE = 128, 4
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
PARTS = ("import", "load", "run", "total")
WIDTH_TO_HEIGHT = 1.5
PHOTO_SCALE = 2.0
WARM_UP_EDGE = 128


def first_image(dtype: str, device: str) -> dict[str, float]:
    """Return the medians over fresh processes, in seconds, from the start of one to its first image.

    Returns:
        ``import`` (the interpreter and the package), ``load`` (reading and folding the bundled model), ``run`` (128x128
        to 512x512) and ``total``.
    """
    runs = [_fresh_process(dtype, device) for _ in range(RUNS)]
    return {part: median(run[part] for run in runs) for part in PARTS}


def _fresh_process(dtype: str, device: str) -> Mapping[str, float]:
    command = [sys.executable, __file__, dtype, device, repr(time())]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _child(dtype: str, device: str, started: float) -> dict[str, float]:
    """Return the seconds of one process, this one, that was started at ``started``."""
    import torch

    from gendr_core import RestoreOptions, load_unet, restore

    imported = time()
    unet = load_unet(dtype=getattr(torch, DTYPES[dtype]), device=device)
    loaded = time()
    restore(torch.rand(1, EDGE, EDGE, 3), unet, options=RestoreOptions(scale=float(SCALE)))
    done = time()
    return {
        "import": imported - started,
        "load": loaded - imported,
        "run": done - loaded,
        "total": done - started,
    }


def photo_seconds(megapixels: float, dtype: str, device: str) -> dict[str, float]:
    """Return how long the bundled model takes to double the edges of a photo, once, after a small one.

    Args:
        megapixels: of the photo, in 10^6.
        dtype: ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``width`` and ``height`` of the photo, and ``seconds``.
    """
    # Here, because they take time that the fresh process must not spend.
    import torch
    from speed_networks import photo
    from speed_timing import now

    from gendr_core import RestoreOptions, load_unet, restore
    from gendr_core.geometry import Extent

    height = max(1, round((megapixels * 1e6 / WIDTH_TO_HEIGHT) ** 0.5))
    extent = Extent(height, max(1, round(height * WIDTH_TO_HEIGHT)))
    unet, options = load_unet(dtype=getattr(torch, DTYPES[dtype]), device=device), RestoreOptions(scale=PHOTO_SCALE)
    restore(photo(Extent(WARM_UP_EDGE, WARM_UP_EDGE)), unet, options=options)
    image = photo(extent)
    begin = now(device)
    restore(image, unet, options=options)
    return {"width": extent.width, "height": extent.height, "seconds": now(device) - begin}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
