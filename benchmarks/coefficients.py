"""Scratch memory of the kernels that the networks use, beside what ``gendr_core/cost.py`` says of it.

Role: run by hand, ``python benchmarks/coefficients.py``; where the two differ, the formulas in ``cost`` want work.
Scratch memory is the most that torch's allocator hands out during one call, less the result. Not covered: memory that
libraries take past that allocator, such as MKL's buffers.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
import torch.nn.functional as F
from report import describe_machine, page, table
from torch import Tensor, nn

from gendr_core.cost import measure

DEVICES = ("cpu", "cuda")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONVOLUTIONS = ((3, 1), (3, 2), (1, 1))
"""Kernel and stride."""
CHANNELS = ((32, 64), (320, 320), (64, 3), (20, 30))
LAYOUTS = ("whole", "band", "channels_last")
LINEARS = ((4096, 320, 2560), (4096, 1280, 320), (77, 1024, 320))
"""Tokens, features in and out."""
ATTENTIONS = ((5, 4096, 4096, 64), (1, 16384, 16384, 64), (4, 4096, 77, 24), (1, 4096, 4096, 512))
"""Heads, queries, keys and channels of a head."""
HEIGHT, WIDTH = 64, 64

Run = Callable[[], Any]
Case = tuple[str, Callable[[str], Run]]
"""What it is called, and how it is made on a device."""

_cpu_peak: Callable[[Run], int] = run_path(
    str(Path(__file__).parents[1] / "tests" / "support" / "allocations.py")  # no package: the tests' own helper
)["allocated_peak"]


def frame(channels: int, layout: str, device: str, dtype: torch.dtype) -> Tensor:
    """Return ones [1, channels, HEIGHT, WIDTH]: dense, a band of rows of a taller frame, or in channels_last."""
    if layout == "band":
        return torch.ones(1, channels, 2 * HEIGHT, WIDTH, device=device, dtype=dtype)[:, :, :HEIGHT]
    x = torch.ones(1, channels, HEIGHT, WIDTH, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def convolutions(dtype: torch.dtype) -> Iterator[Case]:
    """Yield convolutions of every kernel, stride, number of channels and layout."""
    for kernel, stride in CONVOLUTIONS:
        for channels in CHANNELS:
            for layout in LAYOUTS:

                def make(
                    device: str, *, case: tuple[int, int, tuple[int, int], str] = (kernel, stride, channels, layout)
                ) -> Run:
                    k, s, (c_in, c_out), how = case
                    conv = nn.Conv2d(c_in, c_out, k, s, padding=k // 2, device=device, dtype=dtype)
                    x = frame(c_in, how, device, dtype)
                    return lambda: conv(x)

                yield f"conv {kernel}x{kernel} / {stride}, {channels[0]} to {channels[1]}, {layout}", make


def linears(dtype: torch.dtype) -> Iterator[Case]:
    """Yield linear layers on tokens as they come, and on a frame seen as tokens."""
    for tokens, features_in, features_out in LINEARS:
        for layout in ("tokens", "frame"):

            def make(
                device: str, *, n: int = tokens, i: int = features_in, o: int = features_out, how: str = layout
            ) -> Run:
                linear = nn.Linear(i, o, device=device, dtype=dtype).requires_grad_(False)
                shape = (1, i, n) if how == "frame" else (1, n, i)
                x = torch.ones(shape, device=device, dtype=dtype)
                return lambda: linear(x.transpose(1, 2) if how == "frame" else x)

            yield f"linear, {tokens} x {features_in} to {features_out}, {layout}", make


def attentions(dtype: torch.dtype) -> Iterator[Case]:
    """Yield attention that fused kernels take, and one on three axes that they do not."""

    def make(device: str, *, q_shape: tuple[int, ...], k_shape: tuple[int, ...]) -> Run:
        q, k = (torch.ones(shape, device=device, dtype=dtype) for shape in (q_shape, k_shape))
        return lambda: F.scaled_dot_product_attention(q, k, k)

    for heads, queries, keys, channels in ATTENTIONS:
        shapes = {"q_shape": (1, heads, queries, channels), "k_shape": (1, heads, keys, channels)}
        yield f"attention, {heads} x {queries} x {keys}, {channels}", lambda d, shapes=shapes: make(d, **shapes)
    yield "attention, 1024 x 1024, 64, three axes", lambda d: make(d, q_shape=(1, 1024, 64), k_shape=(1, 1024, 64))


def others(dtype: torch.dtype) -> Iterator[Case]:
    """Yield normalisations, activations and changes of size."""
    operations: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "native_group_norm": lambda x, s: torch.native_group_norm(x, s, s, 1, 64, HEIGHT * WIDTH, 32, 1e-6),
        "batch_norm, eval": lambda x, s: F.batch_norm(x, s, s, s, s),
        "layer_norm": lambda x, s: F.layer_norm(x.flatten(2).transpose(1, 2), (64,), s, s),
        "silu": lambda x, _: F.silu(x),
        "gelu": lambda x, _: F.gelu(x),
        "interpolate nearest": lambda x, _: F.interpolate(x, scale_factor=2.0),
        "interpolate bicubic": lambda x, _: F.interpolate(x, size=(96, 80), mode="bicubic", antialias=True),
        "pixel_shuffle": lambda x, _: F.pixel_shuffle(x, 8),
        "pixel_unshuffle": lambda x, _: F.pixel_unshuffle(x, 8),
    }
    for name, operation in operations.items():
        if name == "interpolate bicubic" and dtype != torch.float32:
            continue  # CPUs have no such kernel; the pipeline resizes in fp32
        for layout in LAYOUTS:
            if name == "native_group_norm" and layout == "band":
                continue  # the kernel refuses it

            def make(device: str, *, f: Callable[[Tensor, Tensor], Any] = operation, how: str = layout) -> Run:
                x, scale = frame(64, how, device, dtype), torch.ones(64, device=device, dtype=dtype)
                return lambda: f(x, scale)

            yield f"{name}, {layout}", make


def peak_bytes(run: Run, device: str) -> int:
    """Return the most bytes that torch's allocator of the device handed out during one call, after one before it."""
    if device == "cpu":
        return _cpu_peak(run)
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def result_bytes(result: Tensor | Sequence[Tensor]) -> int:
    """Return the bytes of a tensor or of several."""
    return sum(x.nbytes for x in ([result] if isinstance(result, Tensor) else result))


@torch.inference_mode()
def results_table(dtype: torch.dtype, device: str) -> str:
    """Return a Markdown table of scratch memory in KiB: measured, and by the formulas of ``cost``."""
    rows: list[list[str]] = []
    for family in (convolutions, linears, attentions, others):
        for name, make in family(dtype):
            measured = peak_bytes(make(device), device)
            result, cost = measure(make("meta"), device_type=device)
            figures = (result_bytes(result), measured - result_bytes(result), cost.peak_bytes - result_bytes(result))
            rows.append([name, *(f"{figure / 1024:.1f}" for figure in (*figures, figures[2] - figures[1]))])
    return table(["KiB", "result", "scratch, measured", "scratch, formula", "formula too high by"], rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Measure the scratch memory of kernels.")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="one after the other if not given")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page for benchmarks/results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and write the file."""
    chosen = parse(arguments)
    dtypes = [chosen.dtype] if chosen.dtype else list(DTYPES)
    tables = [f"## {name}\n\n{results_table(DTYPES[name], chosen.device)}" for name in dtypes]
    command = f"python benchmarks/coefficients.py --device {chosen.device}"
    command += f" --dtype {chosen.dtype}" if chosen.dtype else ""
    machine = describe_machine(chosen.device, with_diffusers=False)
    text = page("Scratch memory of kernels", machine, "\n\n".join(tables), [command])
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
