import json
from pathlib import Path

import pytest
from command_line import UNET16, Run

from gendr_core.model import DEFAULT_UNET, load_unet


def test_plan_of_full_size(run: Run) -> None:
    code, out, _ = run("plan", "--size", "128x125", "--arch", "full", "--dtype", "bf16", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["mode"] == "whole"
    assert (report["input"], report["output"]) == ([128, 125], [512, 500])
    assert (report["padded"], report["latent"]) == ([512, 512], [64, 64])
    assert report["passes"] == 1
    # Folded: fewer than the 865,979,856 and 57,266,643 of the files.
    assert report["parameters"] == 838_297_296 + 59_605_267
    assert report["weight_bytes"] == 2 * report["parameters"]
    flops = {stage["name"]: stage["flops"] / 1e12 for stage in report["stages"]}
    assert flops == {
        "prepare": 0.0,
        "encode": pytest.approx(0.676, rel=0.01),
        "step": pytest.approx(0.7615, rel=0.01),
        "decode": pytest.approx(1.0848, rel=0.01),
        "color": 0.0,
    }
    assert report["flops"] == sum(stage["flops"] for stage in report["stages"])
    activations = {stage["name"]: stage["activation_bytes"] for stage in report["stages"]}
    assert report["peak_bytes"] == report["weight_bytes"] + max(activations.values())
    assert activations[report["peak_stage"]] == max(activations.values())


def test_plan_of_a_file(run: Run, weights: Path) -> None:
    code, out, _ = run("plan", "--size", "9x6")
    assert code == 0
    assert "18x12" in out
    report = json.loads(run("plan", "--size", "9x6", "--json")[1])
    file = json.loads(run("inspect", weights / DEFAULT_UNET, "--json")[1])
    loaded = load_unet(weights / DEFAULT_UNET)
    assert report["parameters"] == sum(parameter.numel() for parameter in loaded.network.parameters())
    assert file["num_parameters"] != report["parameters"]
    assert report["weight_bytes"] == 4 * report["parameters"]
    larger = json.loads(run("plan", "--size", "9x6", "--scale", "16", "--json")[1])
    assert larger["output"] == [144, 96]
    assert larger["peak_bytes"] > report["peak_bytes"]
    pair = json.loads(run("plan", "--size", "9x6", "--unet", UNET16, "--json")[1])
    assert [stage["flops"] > 0 for stage in pair["stages"]] == [False, True, True, True, False]


def test_plan_of_contradictions(run: Run) -> None:
    code, _, err = run("plan", "--size", "9x6", "--arch", "full", "--unet", UNET16)
    assert code == 1
    assert "either --arch or weight files" in err
    code, _, err = run("plan", "--size", "40000x6")
    assert code == 1
    assert "at most 32768 pixels" in err


def test_plan_within_a_budget(run: Run) -> None:
    common = ("plan", "--size", "512x512", "--arch", "full", "--dtype", "bf16", "--device", "cuda", "--json")
    code, out, _ = run(*common, "--budget", "6GiB")
    assert code == 0
    report = json.loads(out)
    assert report["peak_bytes"] <= 6 * 2**30
    assert report["device"] == "cuda"
    assert report["tiles"] is None
    assert report["window_cells"] == 64
    tiled = json.loads(run(*common, "--budget", "6GiB", "--memory", "tiles", "--tile", "1024", "--overlap", "128")[1])
    assert tiled["mode"] == "tiles"
    assert (tiled["tiles"]["size_px"], tiled["tiles"]["overlap_px"]) == (1024, 128)
    assert tiled["flops"] > report["flops"]
    full = json.loads(run(*common, "--budget", "6GiB", "--attention", "full")[1])
    assert full["window_cells"] is None
    assert full["flops"] > report["flops"]
    code, _, err = run(*common, "--budget", "1.5GiB")
    assert code == 1
    assert "expected room for at least" in err
    frames = json.loads(run(*common, "--budget", "6GiB", "--frames", "3")[1])
    assert frames["flops"] == 3 * report["flops"]


def test_plan_of_wrong_options(run: Run) -> None:
    for options, words in (
        (("--budget", "much"), "an amount of memory"),
        (("--tile", "100"), "multiple of 64"),
        (("--frames", "0"), "at least 1 frame"),
    ):
        code, _, err = run("plan", "--size", "64x64", *options)
        assert code == 1
        assert words in err


def test_fused_kernels_are_planned_for_cuda_alone(run: Run) -> None:
    words = ("plan", "--size", "128x128", "--unet", UNET16, "--budget", "1GiB", "--json")
    fused, plain = (
        json.loads(run(*words, "--device", "cuda", "--kernels", kernels)[1]) for kernels in ("fused", "torch")
    )
    assert fused["flops"] == plain["flops"] > 0
    code, _, err = run(*words, "--device", "cpu", "--kernels", "fused")
    assert code == 1
    assert "expected a CUDA device and torch's own layers for fused kernels, got cpu" in err


def test_plan_of_weights_in_8_bits(run: Run) -> None:
    common = ("plan", "--size", "128x125", "--arch", "full", "--dtype", "bf16")
    plain, small = (json.loads(run(*common, "--weights", kind, "--json")[1]) for kind in ("dtype", "fp8"))
    assert (plain["weights"], small["weights"], small["dtype"]) == ("bf16", "fp8", "bf16")
    # Without phases, which have more weights.
    assert small["parameters"] == plain["parameters"] - 28_225_536
    # A byte for a weight; two where images and latents come in and go out, four for every output channel.
    assert small["weight_bytes"] == pytest.approx(small["parameters"], rel=0.005)
    assert small["peak_bytes"] < plain["peak_bytes"]
    assert f"{small['parameters']:,} parameters, 831" in run(*common, "--weights", "fp8")[1]
    code, _, err = run(*common, "--weights", "fp8", "--device", "mps")
    assert code == 1
    assert "expected a device with float8 for weights in 8 bits, got mps" in err
