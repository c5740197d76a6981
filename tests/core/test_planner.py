"""What the planner says against what happens."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from allocations import allocated_peak
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_unet, tiny_vae

from gendr_core.config import ColorMethod, MemoryOptions, RestoreOptions
from gendr_core.cost import measure
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError, OutOfMemoryError
from gendr_core.finish import Guides, finish
from gendr_core.geometry import Extent
from gendr_core.host import Host, Meter
from gendr_core.model import GenDRUNet, GenDRVAE
from gendr_core.pipeline import restore
from gendr_core.plan import Bands, Plan, StagePlan
from gendr_core.planner import Planner, Task
from gendr_core.prepare import prepare
from gendr_core.sketch import (
    UNetKind,
    VAEKind,
    decode_cost,
    encode_cost,
    meta_tensor,
    sketched_unet,
    sketched_vae,
    unet_kind,
    unet_sketch,
    vae_sketch,
)
from gendr_core.spec import UNET_FOLDS, Fold, ModelSpec, UNetArch, VAEArch, VAESpec
from gendr_core.step import one_step

GIB = 2**30


def models(kind: str) -> tuple[GenDRUNet, GenDRVAE | None]:
    if kind == "pixel":
        return tiny_unet(192, front="pixel_unshuffle8", back="pixel_shuffle8"), None
    if kind == "cells of 4":
        return tiny_unet(cell_px=4), tiny_vae(4)
    return tiny_unet(negative=True), tiny_vae()


def full_size(dtype: torch.dtype) -> tuple[GenDRUNet, GenDRVAE]:
    unet = sketched_unet(UNetKind(ModelSpec(arch=UNetArch()), dtype, frozenset()), 77, guidable=True)
    return unet, sketched_vae(VAEKind(VAESpec(arch=VAEArch()), dtype, frozenset()))


def plan_full(edge: int, dtype: torch.dtype = torch.bfloat16, *, device: str = "cuda", **memory: object) -> Plan:
    options = RestoreOptions(memory=MemoryOptions(**memory))  # type: ignore[arg-type]
    return Planner(*full_size(dtype), Task(source=Extent(edge // 4, edge // 4)), options, device_type=device).plan()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions have other scratch memory")
@pytest.mark.parametrize("kind", ["pixel", "pair", "cells of 4"])
@pytest.mark.parametrize(
    "memory",
    [
        MemoryOptions(),
        MemoryOptions(mode="tiles", tile_px=256),
        MemoryOptions(mode="tiles", tile_px=192, tile_batch=3),
        MemoryOptions(attention="full"),
    ],
    ids=["whole", "tiles", "batches", "full"],
)
@pytest.mark.parametrize(("height", "width", "channels"), [(60, 90, 3), (128, 128, 4), (150, 97, 1)])
def test_estimate_covers_what_is_allocated_closely(
    kind: str, memory: MemoryOptions, height: int, width: int, channels: int
) -> None:
    unet, vae = models(kind)
    options = RestoreOptions(scale=4.0, memory=memory)
    image = torch.rand(1, height, width, channels)
    plan = Planner(unet, vae, Task(source=Extent(height, width), channels=channels), options).plan()
    estimate = plan.peak_bytes - max(plan.weight_bytes.values())
    measured = allocated_peak(lambda: restore(image, unet, vae, options))
    assert measured <= estimate <= 1.25 * measured


@pytest.mark.parametrize(
    ("height", "width", "channels", "color", "detail", "mask", "reference"),
    [
        (512, 512, 3, "wavelet", 1.0, None, None),
        (512, 512, 3, "none", 0.5, None, None),
        (512, 512, 1, "none", 1.0, (64, 64), None),
        (512, 512, 4, "ycbcr", 1.5, (512, 512), None),
        (512, 512, 3, "wavelet", 1.0, None, (1000, 700)),
        (1024, 3072, 3, "none", 0.0, (1024, 3072), None),
        (3072, 1024, 1, "adain", 1.0, (300, 1500), (512, 512)),
        (3072, 1024, 4, "ycbcr", 0.5, (3000, 1500), (2000, 2000)),
    ],
)
def test_estimate_covers_how_a_frame_is_finished(
    height: int,
    width: int,
    channels: int,
    color: ColorMethod,
    detail: float,
    mask: tuple[int, int] | None,
    reference: tuple[int, int] | None,
) -> None:
    unet, _ = models("pixel")
    options, extent = RestoreOptions(scale=1.0, color=color, detail=detail, feather_px=20), Extent(height, width)
    guides = Guides(
        mask=None if mask is None else torch.rand(1, *mask),
        color_reference=None if reference is None else torch.rand(1, *reference, 3),
    )
    task = Task(source=extent, channels=channels, guides=guides.shapes())
    estimate = Planner(unet, None, task, options).plan().stages["color"].activation_bytes
    prepared = prepare(torch.rand(1, height, width, channels), extent)
    pixels = torch.rand(1, 3, height, width)
    held = pixels.nbytes + prepared.reference.nbytes + (0 if prepared.alpha is None else prepared.alpha.nbytes)
    measured = held + allocated_peak(lambda: finish(pixels, prepared, options, guides))
    assert measured <= estimate <= 1.25 * measured


# Without phases, whose convolutions compute a row and a column too many.
@pytest.mark.parametrize("folds", [frozenset[Fold](), frozenset(UNET_FOLDS) - {"phases", "packed"}])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("band_bytes", [2**14, 2**30])
def test_work_is_what_torch_counts(guidance: float, band_bytes: int, folds: frozenset[Fold]) -> None:
    unet, vae = models("pair")
    plan = StagePlan(bands=Bands(band_bytes=band_bytes))
    sketches = sketched_unet(unet_kind(replace(unet, folds=folds)), 3, guidable=True)
    pixels, latent = meta_tensor(1, 3, 320, 192), meta_tensor(1, 4, 120, 104)
    assert vae is not None
    vae = sketched_vae(VAEKind(vae.spec, vae.dtype, vae.folds))

    def check(stage: Callable[[Meter], object]) -> None:
        meter = Meter()
        _, cost = measure(lambda: stage(meter))
        # The timestep's and the prompt's few values, and the rows that two bands share, are left out.
        assert meter.flops == pytest.approx(cost.flops, rel=0.02 if band_bytes > 2**20 else 0.7)
        assert meter.flops <= 1.02 * cost.flops

    check(lambda meter: encode(pixels, "vae16", vae, plan=plan, meter=meter))
    check(lambda meter: one_step(latent, sketches, guidance=guidance, plan=plan, meter=meter))
    check(lambda meter: decode(latent, "vae16", vae, plan=plan, meter=meter))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), tiled=st.booleans())
def test_a_run_reports_just_the_work_that_was_planned(height: int, width: int, tiled: bool) -> None:
    unet, _ = models("pixel")
    memory = MemoryOptions(mode="tiles", tile_px=128) if tiled else MemoryOptions()
    options = RestoreOptions(scale=4.0, memory=memory)
    plan = Planner(unet, None, Task(source=Extent(height, width)), options).plan()
    seen: list[int] = []

    class Recorder:
        def update(self, done: int, total: int) -> None:
            seen.append(done * 1000 // total)

    restore(torch.rand(1, height, width, 3), unet, options=options, host=Host(progress=Recorder()))
    assert plan.flops > 0
    assert seen[-1] >= 999 - Meter.STEPS // 100


def test_full_size_4096_fits_in_8_gib() -> None:
    for device in ("cuda", "cpu"):
        plan = plan_full(4096, device=device, budget_bytes=8 * GIB)
        assert plan.output == Extent(4096, 4096)
        assert plan.peak_bytes <= 8 * GIB
        # Whole: windows and bands are enough, nothing is cut into tiles.
        assert plan.stages["step"].mode == "whole"


def test_full_size_8192_fits_in_12_gib_with_parked_activations() -> None:
    plan = plan_full(8192, budget_bytes=12 * GIB)
    assert plan.output == Extent(8192, 8192)
    assert plan.peak_bytes <= 12 * GIB
    decoding = plan.stages["decode"]
    assert decoding.bands.parked
    # One parked frame at least: 128 channels of all pixels in 16 bits.
    assert decoding.host_bytes >= 128 * 8192**2 * 2
    assert "GiB parked in the processor's memory" in plan.describe()


def test_activations_are_parked_only_where_they_must() -> None:
    for device in ("cuda", "cpu"):
        plan = plan_full(2048, device=device, budget_bytes=30 * GIB)
        assert not any(stage.bands.parked or stage.host_bytes for stage in plan.stages.values())
    with pytest.raises(OutOfMemoryError):
        plan_full(8192, device="cpu", budget_bytes=12 * GIB)


def test_less_memory_never_costs_less_work() -> None:
    plans = [plan_full(4096, budget_bytes=int(budget)) for budget in (60 * GIB, 10 * GIB, 7.5 * GIB)]
    assert [plan.peak_bytes for plan in plans] == sorted((plan.peak_bytes for plan in plans), reverse=True)
    assert [plan.flops for plan in plans] == sorted(plan.flops for plan in plans)


def test_tiles_come_where_the_frame_does_not_fit() -> None:
    # A pixel model: there is no VAE to need most. Wide, so that the activations weigh more than latent and result.
    spec = models("pixel")[0].spec
    arch = replace(spec.arch, block_out_channels=(512, 512), attention_levels=(False, False))
    unet = replace(
        models("pixel")[0],
        spec=(spec := replace(spec, arch=arch)),
        network=unet_sketch(UNetKind(spec, torch.float32, frozenset())),
    )

    def step_within(budget_bytes: int) -> StagePlan:
        options = RestoreOptions(scale=4.0, memory=MemoryOptions(budget_bytes=budget_bytes))
        return Planner(unet, None, Task(source=Extent(1024, 1024)), options, device_type="cpu").step.plan

    whole = step_within(90 * GIB)
    assert whole.mode == "whole"
    weights = sum(parameter.nbytes for parameter in unet.network.parameters())
    less = step_within(weights + whole.activation_bytes // 2)
    assert less.mode == "tiles"
    assert less.activation_bytes <= whole.activation_bytes // 2
    assert whole.flops < less.flops < 2 * whole.flops


def test_windows_cost_in_proportion_and_full_attention_does_not() -> None:
    def step_flops(edge: int, attention: str) -> int:
        return plan_full(edge, attention=attention, budget_bytes=900 * GIB).stages["step"].flops

    assert step_flops(8192, "windows") == pytest.approx(4 * step_flops(4096, "windows"), rel=0.1)
    assert step_flops(4096, "full") > 5 * step_flops(4096, "windows")
    assert step_flops(768, "full") == step_flops(768, "windows")


def test_users_tiles_are_taken() -> None:
    plan = plan_full(4096, mode="tiles", tile_px=1024, overlap_px=256, tile_batch=2, budget_bytes=40 * GIB)
    tiles = plan.stages["step"].tiles
    assert tiles is not None
    assert (tiles.size, tiles.overlap, tiles.batch) == (128, 32, 2)
    assert "tiles of 1024 px, overlap 256, 2 at a time" in plan.describe()


def test_nothing_fits() -> None:
    with pytest.raises(OutOfMemoryError, match=r"at least [\d.]+ [GM]iB .* beside 1\.\d\d GiB of weights, got 0 B"):
        plan_full(2048, budget_bytes=GIB)


def test_memory_options_are_checked() -> None:
    for wrong in (
        {"mode": "some"},
        {"attention": "none"},
        {"budget_bytes": 0},
        {"tile_px": 100},
        {"overlap_px": 30},
        {"tile_px": 128, "overlap_px": 128},
        {"tile_batch": 0},
    ):
        with pytest.raises(OptionError, match="expected"):
            MemoryOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="below the tile size, 128 pixels, got 192"):
        MemoryOptions(tile_px=128, overlap_px=192)


def test_planning_needs_no_device_that_is_not_here() -> None:
    code = (
        "import torch; torch.cuda.init = None\n"
        "from gendr_core.cli import main\n"
        "raise SystemExit(main(['plan', '--size', '64x64', '--device', 'cuda', '--arch', 'full', '--budget', '8GiB']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "on cuda" in run.stdout


def test_the_first_estimate_is_no_other_than_the_next() -> None:
    # Of a shape that no other test has, so that the sketch of its network is made here.
    arch = VAEArch(latent_channels=4, block_out_channels=(8, 8, 16, 24), layers_per_block=1, norm_groups=8)
    unet = models("pair")[0].spec
    for cost_of in (encode_cost, decode_cost):
        args = (
            unet,
            VAEKind(VAESpec(arch=arch), torch.float32, frozenset()),
            Extent(64, 128),
            StagePlan(windows=None),
            "cpu",
        )
        vae_sketch.cache_clear()
        first = cost_of(*args)
        cost_of.cache_clear()
        assert cost_of(*args) == first


def test_an_overlap_that_leaves_nothing_of_any_tile_is_refused() -> None:
    with pytest.raises(OptionError, match="below 1024 pixels, the largest tile, got 1024"):
        plan_full(4096, overlap_px=1024, budget_bytes=40 * GIB)
