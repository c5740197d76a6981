import gc
import weakref
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from networks import seeded, tiny_unet, tiny_vae
from recorder import Recorder, Stop, noise
from torch import Tensor, nn

from gendr_core import graphs
from gendr_core.capture import TorchCapturer
from gendr_core.cli.options import add_memory_options, add_restore_options, restore_options
from gendr_core.config import RestoreOptions
from gendr_core.decode import decode
from gendr_core.encode import encode
from gendr_core.errors import OptionError
from gendr_core.geometry import Extent, Span
from gendr_core.graphs import GraphCache, Pass, used
from gendr_core.host import Host, Meter
from gendr_core.model import GenDRUNet, GenDRVAE, fold_unet, fold_vae
from gendr_core.pipeline import restore
from gendr_core.plan import DEFAULT_PLAN, StagePlan, band_sizes
from gendr_core.spec import UNET_FOLDS, VAE_FOLDS
from gendr_core.step import one_step


def test_off_is_off_and_used_ends_with_its_block(recorder: Recorder) -> None:
    cache, network = GraphCache(recorder), nn.Identity()
    each = Pass(network=network, plan=DEFAULT_PLAN, meter=Meter(), cells=Extent(4, 4), constants=())

    def run() -> None:
        for _ in range(3):
            graphs.run(each, lambda _, inputs: inputs[0] + 1, (noise(1, 2, 4, 4),))

    with torch.inference_mode():
        run()
        with used("off", cache):
            run()
        with pytest.raises(InterruptedError), used("auto", cache):
            raise InterruptedError
        run()
        assert recorder.captures == 0
        with used("auto", cache):
            run()
    assert (recorder.captures, recorder.replays) == (1, 2)


def folded(unet: GenDRUNet) -> GenDRUNet:
    return fold_unet(unet, UNET_FOLDS, device="cpu")


@contextmanager
def used_by_stages(cache: GraphCache) -> Iterator[None]:
    with torch.inference_mode(), used("auto", cache):
        yield


@pytest.mark.parametrize("guidance", [1.0, 3.0, 1.5])
@pytest.mark.parametrize("folds", [UNET_FOLDS, tuple(fold for fold in UNET_FOLDS if fold != "prefix")])
def test_a_recorded_step_is_the_eager_one_bit_by_bit(folds: tuple[str, ...], guidance: float) -> None:
    unet = fold_unet(tiny_unet(negative=True), folds, device="cpu")  # pyright: ignore[reportArgumentType]
    recorder = Recorder()
    cache = GraphCache(recorder)
    for seed in range(4):
        latent = noise(1, 4, 16, 8, seed=seed)
        with torch.inference_mode():
            eager = one_step(latent, unet, guidance=guidance)
        with used_by_stages(cache):
            assert torch.equal(one_step(latent, unet, guidance=guidance), eager)
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_a_step_with_another_prompt_or_guidance_never_gets_the_wrong_one(recorder: Recorder) -> None:
    unet, cache = folded(tiny_unet(negative=True)), GraphCache(recorder)
    other = replace(unet, positive=unet.positive * 1.5)
    latent = noise(1, 4, 8, 8)
    for _ in range(3):
        for model, guidance in ((unet, 1.0), (other, 1.0), (unet, 2.0), (other, 2.0), (unet, 4.0)):
            with torch.inference_mode():
                eager = one_step(latent, model, guidance=guidance)
            with used_by_stages(cache):
                assert torch.equal(one_step(latent, model, guidance=guidance), eager)
    # Prompts are tensors of a pass; the weight is a constant.
    assert recorder.captures == 3


def test_a_step_whose_timestep_is_not_folded_is_not_recorded(recorder: Recorder) -> None:
    unet, cache = tiny_unet(negative=True), GraphCache(recorder)
    with used_by_stages(cache):
        for _ in range(3):
            one_step(noise(1, 4, 8, 8), unet)
    assert recorder.captures == 0


def test_a_recorded_vae_is_the_eager_one_bit_by_bit(recorder: Recorder) -> None:
    vae, cache = fold_vae(tiny_vae(), VAE_FOLDS, device="cpu"), GraphCache(recorder)
    for seed in range(4):
        pixels, latent = noise(1, 3, 64, 32, seed=seed), noise(1, 4, 8, 4, seed=seed)
        with torch.inference_mode():
            eager = encode(pixels, "vae16", vae), decode(latent, "vae16", vae)
        with used_by_stages(cache):
            assert torch.equal(encode(pixels, "vae16", vae), eager[0])
            assert torch.equal(decode(latent, "vae16", vae), eager[1])
    assert (recorder.captures, recorder.replays) == (2, 6)


def restored(unet: GenDRUNet, vae: GenDRVAE, seed: int, **options: str) -> Tensor:
    image = torch.rand(1, 20, 30, 3, generator=torch.Generator().manual_seed(seed))
    return restore(image, unet, vae, RestoreOptions(scale=1.0, **options))  # pyright: ignore[reportArgumentType]


def test_restore_uses_graphs_only_if_asked(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    cache = GraphCache(recorder)
    monkeypatch.setattr("gendr_core.pipeline.used", lambda mode: used(mode, cache))
    unet, vae = folded(tiny_unet(negative=True)), fold_vae(tiny_vae(), VAE_FOLDS, device="cpu")
    plain = [restored(unet, vae, seed) for seed in range(3)]
    assert recorder.captures == 0
    assert all(torch.equal(restored(unet, vae, seed, graphs="auto"), plain[seed]) for seed in range(3))
    assert (recorder.captures, recorder.replays) == (3, 6)


def test_without_cuda_the_option_changes_nothing() -> None:
    unet, vae = folded(tiny_unet(negative=True)), tiny_vae()
    assert all(torch.equal(restored(unet, vae, seed, graphs="auto"), restored(unet, vae, seed)) for seed in range(3))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(OptionError, match="graphs to be one of off, auto"):
        RestoreOptions(graphs="on")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("words", [[], ["--graphs", "off"], ["--graphs", "auto"]])
def test_the_command_line_leaves_graphs_off_unless_asked(words: list[str]) -> None:
    parser = ArgumentParser()
    add_restore_options(parser)
    add_memory_options(parser)
    assert restore_options(parser.parse_args(words)).graphs == (words or ["off"])[-1]


CUDA = torch.device("cuda")
ON_GPU = StagePlan(bands=band_sizes("cuda")[0])


class Counting(TorchCapturer):
    """The real one, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.captures = 0

    def capture(self, work: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...], /) -> graphs.Captured:
        """Return ``work`` recorded."""
        self.captures += 1
        return super().capture(work, inputs)


def gpu_stage(name: str) -> tuple[nn.Module, Callable[[int, int], Tensor]]:
    """Return a network on the GPU and a stage with it, given a size in cells and a seed."""
    if name == "step":
        unet = fold_unet(tiny_unet(negative=True), UNET_FOLDS, device=CUDA)
        return unet.network, lambda size, seed: one_step(
            noise(1, 4, size, size, seed=seed), unet, guidance=2.0, plan=ON_GPU
        )
    vae = fold_vae(tiny_vae(), VAE_FOLDS, device=CUDA)
    if name == "encode":
        return vae.network, lambda size, seed: encode(
            noise(1, 3, 8 * size, 8 * size, seed=seed), "vae16", vae, plan=ON_GPU
        )
    return vae.network, lambda size, seed: decode(noise(1, 4, size, size, seed=seed), "vae16", vae, plan=ON_GPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["step", "encode", "decode"])
def test_captured_stages_are_the_eager_ones_bit_by_bit_with_an_offload_between(name: str) -> None:
    network, stage = gpu_stage(name)
    capturer = Counting()
    cache = GraphCache(capturer)
    for turn in range(3):
        for seed in range(4):
            for size in (16, 24):
                with torch.inference_mode():
                    eager = stage(size, seed)
                with used_by_stages(cache):
                    assert torch.equal(stage(size, seed), eager), (turn, seed, size)
        assert len(cache) == 2
        network.to("cpu")
        blocker = torch.empty(2**24, device=CUDA)
        network.to(CUDA)
        del blocker
    assert 2 <= capturer.captures <= 6
    cache.clear()


@pytest.mark.gpu
def test_cancel_and_failed_captures_leave_the_gpu_usable() -> None:
    network = seeded(nn.Conv2d(2, 2, 3, padding=1), 1).to(CUDA)
    cache, stop = GraphCache(TorchCapturer()), Stop()
    host = Host(interrupt=stop)
    x = noise(1, 2, 4, 4).to(CUDA)

    def waits(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        meter.advance(1, Span(0, 1), 1)
        return network(inputs[0]) * float(inputs[0].sum())

    def plain(meter: Meter, inputs: tuple[Tensor, ...]) -> Tensor:
        meter.advance(1, Span(0, 1), 1)
        return network(inputs[0])

    def each(name: str) -> Pass:
        return Pass(network=network, plan=ON_GPU, meter=Meter(host), cells=Extent(4, 4), constants=(name,))

    stream = torch.cuda.current_stream()
    with torch.inference_mode():
        for _ in range(4):
            assert torch.equal(cache.run(each("waits"), waits, (x,)), waits(Meter(), (x,)))
        assert len(cache) == 0
        assert torch.cuda.current_stream() == stream
        torch.cuda.empty_cache()
        for _ in range(2):
            cache.run(each("plain"), plain, (x,))
        stop.now = True
        with pytest.raises(InterruptedError):
            cache.run(each("plain"), plain, (x,))
        stop.now = False
        assert torch.equal(cache.run(each("plain"), plain, (x,)), network(x))
    assert len(cache) == 1
    cache.clear()


@pytest.mark.gpu
def test_graphs_keep_no_more_memory_than_they_may_and_give_it_back() -> None:
    _, stage = gpu_stage("decode")
    stage(32, 0)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    cache = GraphCache(TorchCapturer(), most_bytes=2**26)
    with used_by_stages(cache):
        for size in (8, 16, 24, 32, 40, 48, 56, 64) * 3:
            stage(size, 0)
            assert cache.num_bytes <= 2**26
    cache.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**25


@pytest.mark.gpu
def test_a_freed_network_takes_the_memory_of_its_graphs_along() -> None:
    network, stage = gpu_stage("decode")
    cache = GraphCache(TorchCapturer())
    with used_by_stages(cache):
        for seed in range(3):
            stage(32, seed)
    assert len(cache) == 1
    gone = weakref.ref(network)
    del network, stage
    gc.collect()
    assert gone() is None
    assert len(cache) == 0
