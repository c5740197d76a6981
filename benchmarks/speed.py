"""Speed of one restoration: ours end to end and stage by stage, beside the diffusers reference on the same weights.

Role: run by hand, ``python benchmarks/speed.py --against diffusers``; benchmarks/README.md explains the figures.
All contenders take turns (A B C A B C ...), so that a busy or warming machine weighs on each alike. Not covered:
loading, reading and writing files, memory, and the quality of what comes out.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from report import describe_machine, page, table
from torch import Tensor, nn

from gendr_core.color import match_color
from gendr_core.config import RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.geometry import Extent
from gendr_core.model import DEFAULT_UNET, GenDRUNet, GenDRVAE, load_unet
from gendr_core.nets import VAE, UNet
from gendr_core.pipeline import restore
from gendr_core.prepare import prepare, restore_layout
from gendr_core.spec import ModelSpec, UNetArch, VAEArch, VAESpec
from gendr_core.step import one_step
from gendr_core.tensors import crop

ARCHITECTURES = ("mini", "full")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM_UPS = {"cpu": 1, "cuda": 3}
"""Calls before the clock starts; CUDA chooses its kernels in the first ones."""
SCALE = 4
STAGES = ("prepare", "encode", "step", "decode", "color")
TOKENS = 77
"""Length of a prompt of SD2.1's text encoder."""

Contender = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured."""

    arch: str
    """``mini`` or ``full``."""
    size: int
    """Output edge in pixels; the input is a quarter of it."""
    dtype: str
    device: str
    against: str | None
    repeat: int

    @property
    def command(self) -> str:
        """The command that measures this again."""
        rival = f" --against {self.against}" if self.against else ""
        return (
            f"python benchmarks/speed.py --arch {self.arch} --size {self.size} --dtype {self.dtype}"
            f" --device {self.device}{rival} --repeat {self.repeat}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Medians over the rounds, in milliseconds."""

    weights: str
    ours_ms: float
    """``pipeline.restore`` with its default colour matching, CPU image in and out."""
    stages_ms: Mapping[str, float]
    """The same, with the clock read after every stage; the sum may exceed ``ours_ms`` where reading it stalls CUDA."""
    diffusers_ms: float | None
    ratio_to_diffusers: float | None
    """diffusers_ms / ours_ms: above 1 ours is faster."""
    max_difference: float | None
    """Largest distance between our image without colour matching and the reference's, of values in 0 to 1."""


def random_unet(spec: ModelSpec, device: str, dtype: torch.dtype) -> GenDRUNet:
    """Return a UNet with random weights and a random prompt."""
    network = UNet(spec.arch, device="meta", dtype=dtype)
    _randomise(network, device)
    positive = torch.randn(TOKENS, spec.arch.cross_attention_dim)
    return GenDRUNet(network=network, spec=spec, positive=positive, negative=None, dtype=dtype)


def random_vae(spec: VAESpec, device: str, dtype: torch.dtype) -> GenDRVAE:
    """Return a VAE with random weights."""
    network = VAE(spec.arch, device="meta", dtype=dtype)
    _randomise(network, device)
    return GenDRVAE(network=network, spec=spec, dtype=dtype)


def _randomise(network: nn.Module, device: str) -> None:
    """Give a network on the meta device weights that keep activations near 1: speed must not meet denormals or NaN.

    Uniform numbers, because a billion normal ones take minutes on one core.
    """
    network.to_empty(device=device).requires_grad_(False).train(False)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:  # norms multiply by 1, biases add 0
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            bound = (3.0 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)


def build(setting: Setting) -> tuple[str, GenDRUNet, GenDRVAE | None]:
    """Return what the weights are, and the networks that ``setting`` names."""
    device, dtype = setting.device, DTYPES[setting.dtype]
    if setting.arch == "full":
        unet = random_unet(ModelSpec(arch=UNetArch()), device, dtype)
        return "UNet16 and VAE16, random", unet, random_vae(VAESpec(arch=VAEArch()), device, dtype)
    return DEFAULT_UNET, load_unet(DEFAULT_UNET, device=device, dtype=dtype), None


class StageClock:
    """Times of the stages of every call."""

    def __init__(self, device: str) -> None:
        """Start with no times; on CUDA every reading waits for the device."""
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._device = device
        self._last = 0.0

    def start(self) -> None:
        """Begin a call."""
        self._last = now(self._device)

    def finish(self, stage: str) -> None:
        """Note that a stage has ended and the next begins."""
        time = now(self._device)
        self.seconds[stage].append(time - self._last)
        self._last = time


def now(device: str) -> float:
    """Return the wall clock in seconds, once the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


def run_stages(image: Tensor, unet: GenDRUNet, vae: GenDRVAE | None, extent: Extent, clock: StageClock) -> Tensor:
    """Return what ``pipeline.restore`` returns for one frame, reading the clock after every stage."""
    clock.start()
    prepared = prepare(image, extent)
    clock.finish("prepare")
    latent = encode(prepared.pixels, unet.spec.front, vae)
    clock.finish("encode")
    latent = one_step(latent, unet)
    clock.finish("step")
    pixels = crop(decode(latent, unet.spec.back, vae).cpu(), prepared.padding, extent)
    clock.finish("decode")
    restored = restore_layout(match_color(pixels, prepared.reference, RestoreOptions().color), prepared)
    clock.finish("color")
    return restored


def interleave(contenders: Mapping[str, Contender], rounds: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of each contender; every round calls each of them once, in order."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = now(device)
            call()
            seconds[name].append(now(device) - begin)
    return {name: median(times) * 1e3 for name, times in seconds.items()}


def warm_up(call: Contender, device: str) -> Tensor:
    """Return the last result of the calls before the clock starts."""
    for _ in range(WARM_UPS[device] - 1):
        call()
    return call()


@torch.inference_mode()
def measure(setting: Setting) -> Result:
    """Return the medians of one setting."""
    torch.manual_seed(0)
    weights, unet, vae = build(setting)
    edge = max(1, setting.size // SCALE)
    image, extent = torch.rand(1, edge, edge, 3), Extent(setting.size, setting.size)
    options = RestoreOptions(longest_edge=setting.size)
    clock = StageClock(setting.device)
    contenders: dict[str, Contender] = {
        "ours": lambda: restore(image, unet, vae, options),
        "stages": lambda: run_stages(image, unet, vae, extent, clock),
    }
    ours = warm_up(lambda: restore(image, unet, vae, replace(options, color="none")), setting.device)
    difference = None
    if setting.against == "diffusers":
        # Here, because it takes seconds and diffusers is often not installed.
        from gendr_core.reference import GenDRReferencePipeline

        reference = GenDRReferencePipeline.from_gendr(unet, vae)
        contenders["diffusers"] = lambda: reference(image, extent)
        difference = (ours - warm_up(contenders["diffusers"], setting.device)).abs().max().item()
    medians = interleave(contenders, setting.repeat, setting.device)
    rival = medians.get("diffusers")
    return Result(
        weights=weights,
        ours_ms=medians["ours"],
        stages_ms={stage: median(times) * 1e3 for stage, times in clock.seconds.items()},
        diffusers_ms=rival,
        ratio_to_diffusers=None if rival is None else rival / medians["ours"],
        max_difference=difference,
    )


def results_table(measured: Sequence[tuple[Setting, Result]]) -> str:
    """Return a Markdown table: one column per setting, one row per figure."""
    header = ["median ms", *(f"{setting.arch} {setting.size} px {setting.dtype}" for setting, _ in measured)]
    results = [result for _, result in measured]
    rows = [
        ["weights", *(result.weights for result in results)],
        ["ours", *(f"{result.ours_ms:.1f}" for result in results)],
        *([f"ours: {stage}", *(f"{result.stages_ms[stage]:.1f}" for result in results)] for stage in STAGES),
    ]
    if any(result.diffusers_ms is not None for result in results):
        rows += [
            ["diffusers reference", *_figures((result.diffusers_ms for result in results), ".1f")],
            ["ratio to diffusers", *_figures((result.ratio_to_diffusers for result in results), ".2f")],
            ["largest difference", *_figures((result.max_difference for result in results), ".1e")],
        ]
    return table(header, rows)


def _figures(values: Iterable[float | None], form: str) -> list[str]:
    return ["-" if value is None else format(value, form) for value in values]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's choices."""
    parser = argparse.ArgumentParser(description="Time one restoration, ours beside the diffusers reference.")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="which networks; both one after the other if not given")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="output edge in pixels; the input is N/4")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="of weights and activations")
    parser.add_argument("--device", choices=sorted(WARM_UPS), default="cpu")
    parser.add_argument("--against", choices=["diffusers"], help="also time the reference; needs diffusers")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="timed calls of each contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object per line and architecture")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a page for benchmarks/results")
    chosen = parser.parse_args(arguments)
    if chosen.size < SCALE or chosen.repeat < 1:
        parser.error(f"expected --size >= {SCALE} and --repeat >= 1, got {chosen.size} and {chosen.repeat}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it and write the files."""
    chosen = parse(arguments)
    machine = describe_machine(chosen.device, with_diffusers=chosen.against == "diffusers")
    settings = [
        Setting(
            arch=arch,
            size=chosen.size,
            dtype=chosen.dtype,
            device=chosen.device,
            against=chosen.against,
            repeat=chosen.repeat,
        )
        for arch in ([chosen.arch] if chosen.arch else ARCHITECTURES)
    ]
    measured = [(setting, measure(setting)) for setting in settings]
    text = page("Speed", machine, results_table(measured), [setting.command for setting in settings])
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    if chosen.json:
        objects = ({**asdict(machine), **asdict(setting), **asdict(result)} for setting, result in measured)
        chosen.json.write_text("".join(json.dumps(entry) + "\n" for entry in objects), encoding="utf-8")


if __name__ == "__main__":
    main()
