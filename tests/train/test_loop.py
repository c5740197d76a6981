"""Whole tiny runs: resuming, stopping, failing, and using what comes out."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from gendr_core import RestoreOptions, load_unet, load_vae, restore
from gendr_core.checkpoint import read_unet, read_vae
from gendr_core.errors import GenDRError
from gendr_train.cli import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, main
from gendr_train.config import resolved
from gendr_train.errors import TrainingError
from gendr_train.loop import export, learning_rate, train
from gendr_train.schema import OptimiserConfig, TrainConfig
from gendr_train.stages.build import build_stage

MakeConfig = Callable[..., TrainConfig]


def _never(_: int) -> bool:
    return False


def _state(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Return everything that was saved: weights, averages and moments, by name."""
    folder = Path(config.run.output) / config.run.name / "state"
    flat = {f"network:{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    averages = torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)
    moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    flat |= {f"ema:{name}": value for name, value in averages.items()}
    return flat | {f"optimiser:{i}.{name}": value for i, entry in moments.items() for name, value in entry.items()}


def _metrics(config: TrainConfig, kind: str) -> list[dict[str, float]]:
    lines = (Path(config.run.output) / config.run.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


@pytest.mark.parametrize("stage", ["pixel", "vae16"])
def test_two_steps_and_two_more_are_four_steps_to_the_bit(make_config: MakeConfig, stage: str) -> None:
    straight = make_config(stage, run={"name": "straight"})
    assert train(straight, resume=False, should_stop=_never) == 8
    broken = make_config(stage, run={"name": "broken"})
    assert train(broken, resume=False, should_stop=lambda images: images >= 4) == 4
    assert train(broken, resume=True, should_stop=_never) == 8
    one, other = _state(straight), _state(broken)
    assert one.keys() == other.keys()
    assert any(name.startswith("optimiser:") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_lowers_the_loss(make_config: MakeConfig) -> None:
    config = make_config("pixel", loop={"images": 120, "log_every": 40}, degradation="light")
    train(config, resume=False, should_stop=_never)
    losses = [entry["generator/charbonnier"] for entry in _metrics(config, "train")]
    assert len(losses) == 3
    assert losses[-1] < 0.95 * losses[0]


def test_averaged_weights_lag_behind(make_config: MakeConfig) -> None:
    config = make_config("pixel")
    train(config, resume=False, should_stop=_never)
    state = _state(config)
    names = [name for name, _ in build_stage(config).named_parameters()]
    own, averaged = state["network:unet.conv_out.weight"], state[f"ema:{names.index('unet.conv_out.weight')}"]
    assert 0.0 < float(averaged.norm()) < float(own.norm())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(make_config: MakeConfig) -> None:
    config = make_config(
        "pixel", pixel={"one_step": {"c_skip": 1e38}, "losses": {"charbonnier": 0.0, "gradient": 1e30}}
    )
    with pytest.raises(TrainingError, match=r"expected finite losses, got .* at 2 images"):
        train(config, resume=False, should_stop=_never)
    batch = load_file(Path(config.run.output) / "test" / "not_finite_2_0.safetensors")
    assert batch["original"].shape == (2, 3, 64, 64)


def test_saved_state_is_neither_overwritten_nor_mistaken(make_config: MakeConfig) -> None:
    config = make_config("pixel")
    with pytest.raises(TrainingError, match="without --resume"):
        train(config, resume=True, should_stop=_never)
    train(config, resume=False, should_stop=_never)
    with pytest.raises(TrainingError, match="give --resume"):
        train(config, resume=False, should_stop=_never)
    with pytest.raises(TrainingError, match=r"expected run\.seed as in the saved state, 3, got 4"):
        train(make_config("pixel", run={"seed": 4}), resume=True, should_stop=_never)
    path = Path(config.run.output) / "test" / "state" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged or foreign"):
        train(config, resume=True, should_stop=_never)


def test_the_record_tells_the_resolved_config(make_config: MakeConfig) -> None:
    config = make_config("pixel")
    train(config, resume=False, should_stop=_never)
    record = json.loads((Path(config.run.output) / "test" / "state" / "run.json").read_text(encoding="utf-8"))
    assert record["config"] == resolved(config)
    assert record["images"] == 8


def test_pixel_weights_train_export_and_restore(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("pixel", export={"title": "tiny", "source": "a test"})
    train(config, resume=False, should_stop=_never)
    export(config, tmp_path / "unet.safetensors")
    spec = read_unet(tmp_path / "unet.safetensors").spec
    assert (spec.arch, spec.front, spec.back, spec.title) == (
        config.stage.network,  # type: ignore[union-attr]
        "pixel_unshuffle8",
        "pixel_shuffle8",
        "tiny",
    )
    assert "8 images" in spec.source
    image = torch.rand((1, 17, 20, 3), generator=torch.Generator().manual_seed(0))
    result = restore(image, load_unet(tmp_path / "unet.safetensors"), options=RestoreOptions(color="none"))
    assert result.shape == (1, 68, 80, 3)


def test_a_run_can_start_from_exported_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = tmp_path / "first.safetensors"
    first = make_config("pixel")
    train(first, resume=False, should_stop=_never)
    export(first, weights)
    run, still = {"name": "second", "seed": 9}, {"lr": 1e-12, "final_lr": 0.0}
    second = make_config("pixel", run=run, pixel={"init": str(weights)}, optimiser=still)
    train(second, resume=False, should_stop=_never)
    export(second, tmp_path / "second.safetensors")
    before, after = read_unet(weights), read_unet(tmp_path / "second.safetensors")
    assert torch.equal(before.positive, after.positive)
    for name, value in before.state.items():
        torch.testing.assert_close(after.state[name], value, rtol=0, atol=1e-6)


def test_weights_of_another_shape_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    weights = tmp_path / "first.safetensors"
    first = make_config("pixel")
    train(first, resume=False, should_stop=_never)
    export(first, weights)
    network = {
        "in_channels": 192,
        "out_channels": 192,
        "block_out_channels": [16, 16],
        "attention_levels": [False, True],
    }
    settings = {"network": {**network, "head_dim": 8, "norm_groups": 4}, "init": str(weights)}
    wider = make_config("pixel", run={"name": "second"}, pixel=settings)
    with pytest.raises(TrainingError, match="another shape in"):
        train(wider, resume=False, should_stop=_never)


def test_vae_then_latent_unet_train_export_and_restore(make_config: MakeConfig, tmp_path: Path) -> None:
    vae_config = make_config("vae16", run={"name": "vae"}, vae16={"kl": 1e-4})
    train(vae_config, resume=False, should_stop=_never)
    vae_path, unet_path = tmp_path / "vae.safetensors", tmp_path / "unet.safetensors"
    export(vae_config, vae_path)
    scaling = read_vae(vae_path).spec.latent_scaling
    config = make_config("latent", latent={"vae": str(vae_path), "latent": 1.0})
    train(config, resume=False, should_stop=_never)
    export(config, unet_path)
    assert read_unet(unet_path).spec.latent_scaling == scaling != 0.2614
    image = torch.rand((1, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    assert restore(image, load_unet(unet_path), load_vae(vae_path)).shape == (1, 64, 64, 3)


def test_latents_are_not_measured_without_images(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("vae16", data={"validation_folder": None})
    train(config, resume=False, should_stop=_never)
    with pytest.raises(TrainingError, match=r"data\.validation_folder to measure latents"):
        export(config, tmp_path / "vae.safetensors")


def test_half_precision_runs(make_config: MakeConfig) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    train(make_config("pixel", loop={"images": 4, "precision": "bf16"}), resume=False, should_stop=_never)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_validation_starts_at_no_gain(make_config: MakeConfig) -> None:
    # A rate of next to nothing leaves the network at bicubic.
    config = make_config("pixel", optimiser={"lr": 1e-12, "final_lr": 0.0}, loop={"images": 4, "validate_every": 4})
    train(config, resume=False, should_stop=_never)
    scores = _metrics(config, "validation")[0]
    assert scores["light"] > scores["heavy"] > 10.0
    assert scores["light_gain"] == pytest.approx(0.0, abs=1e-4)


def test_rate_warms_up_and_falls() -> None:
    options = OptimiserConfig(lr=1.0, final_lr=0.1, warmup_images=10)
    rates = [learning_rate(options, images, 110) for images in (5, 10, 60, 110, 200)]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1])


def test_command_trains_exports_reports_errors_and_saves_when_interrupted(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(resolved(make_config("pixel"))), encoding="utf-8")
    folder, weights = tmp_path / "out", tmp_path / "out" / "test.safetensors"
    command = ["pixel", str(path), "--out", str(folder)]
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main([*command, "--set", "loop.images=4"]) == EXIT_OK
        assert read_unet(weights).spec.scale == 4.0
        assert main([*command, "--set", "data.bach=1"]) == EXIT_ERROR
        assert "did you mean data.batch?" in capsys.readouterr().err
        assert main(["cida", str(path)]) == EXIT_ERROR
        assert f"gendr-train pixel {path}" in capsys.readouterr().err
        assert (
            main(["pixel", str(path), "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "b")]) == EXIT_ERROR
        )
        assert "absent" in capsys.readouterr().err
        monkeypatch.setattr("gendr_train.loop._update", lambda *_: os.kill(os.getpid(), signal.SIGINT) or {})
        assert main([*command, "--resume"]) == EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert main([*command, "--export-only"]) == EXIT_OK
    assert "6 images" in read_unet(weights).spec.source
    assert issubclass(TrainingError, GenDRError)
