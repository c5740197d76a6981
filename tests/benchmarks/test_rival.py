from pathlib import Path

import pytest
import rival
import torch

from gendr_core.errors import OptionError

ENLARGE = """7767517
2 2
Input data 0 1 data
Interp up 1 1 data output 0=1 1=4.000000e+00 2=4.000000e+00
"""
"""A graph of ncnn without weights: every pixel 4 times."""


def write_network(folder: Path, graph: str) -> None:
    (folder / f"{rival.REALESRGAN}.param").write_text(graph, encoding="ascii")
    (folder / f"{rival.REALESRGAN}.bin").write_bytes(b"\0" * 4)


def test_rival_runs_the_graph_on_rgb_and_clamps(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    write_network(tmp_path, ENLARGE)
    image = torch.rand(1, 5, 7, 3, generator=torch.Generator().manual_seed(0))
    image[0, 0, 0, 0] = 1.5
    restored = rival.RealESRGAN(tmp_path, num_threads=1)(image)
    expected = image.clamp(0.0, 1.0).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert torch.equal(restored, expected)


def test_rival_says_which_file_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    with pytest.raises(OptionError, match=r"realesrgan-x4plus\.param and no .*realesrgan-x4plus\.bin"):
        rival.RealESRGAN(tmp_path, num_threads=1)
