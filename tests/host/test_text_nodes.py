"""Load SD2.1-VAE16 Base under core's sampler, and GenDR Fix Prompt with prompts from outside of the pack."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from comfy_server import Graph, Server, node
from networks import seeded
from weights import LATENT, TINY_VAE

from gendr_core.checkpoint import write_unet
from gendr_core.nets import UNet
from gendr_core.spec import ModelSpec, Prediction, UNetArch, alpha_bar, one_step_coefficients

pytestmark = pytest.mark.host

BASES: dict[Prediction, str] = {"epsilon": "base-eps.safetensors", "v_prediction": "base-v.safetensors"}
LATENT_SCALING = 0.19
TIMESTEP = 354


@pytest.fixture(scope="module")
def bases(base: Path) -> Path:
    """The folder with a base of either prediction, in SD2.1's shape as far as the host looks: two levels of 320."""
    arch = UNetArch(block_out_channels=(320, 320), attention_levels=(True, False), layers_per_block=1)
    state = {name: weight.half() for name, weight in seeded(UNet(arch), 1).state_dict().items()}
    prompt = torch.zeros(1, arch.cross_attention_dim)
    folder = base / "models" / "diffusion_models"
    for prediction, name in BASES.items():
        spec = ModelSpec(arch=arch, prediction=prediction, latent_scaling=LATENT_SCALING)
        write_unet(folder / name, spec, state, prompt)
    return folder


@pytest.mark.parametrize("prediction", BASES)
def test_the_hosts_model_predicts_what_our_network_does(
    hosted: ModuleType, bases: Path, prediction: Prediction
) -> None:
    pack = hosted.__name__.partition(".")[0]
    ours = import_module(f"{pack}.gendr_core.model").load_unet(bases / BASES[prediction], folds=())
    patcher = import_module(f"{pack}.nodes.loaders").LoadBase.execute(BASES[prediction]).args[0]
    latents = patcher.get_model_object("latent_format")
    assert (latents.latent_channels, latents.scale_factor) == (16, LATENT_SCALING)
    generator = torch.Generator().manual_seed(5)
    noised, prompt = torch.randn(1, 16, 8, 8, generator=generator), torch.randn(1, 7, 1024, generator=generator)
    with torch.inference_mode():
        sigma = patcher.model.model_sampling.sigma(torch.tensor([float(TIMESTEP)]))
        scaled = noised * (1.0 + sigma**2).sqrt()
        clean = patcher.model.apply_model(scaled, sigma, c_crossattn=prompt)
        predicted = ours.network(noised, TIMESTEP, prompt)
    c_skip, c_out = one_step_coefficients(prediction, alpha_bar(TIMESTEP))
    torch.testing.assert_close(clean, c_skip * noised + c_out * predicted, rtol=0, atol=2e-4)


def test_the_host_knows_the_full_size_by_our_names_for_it(hosted: ModuleType) -> None:
    import comfy.model_detection
    import comfy.utils

    spec = ModelSpec(arch=UNetArch())
    shape = import_module(hosted.__name__.replace(".host", ".loaders")).ldm_shape("base", spec)
    names = comfy.utils.unet_to_diffusers(shape)
    state = {names[name]: weight for name, weight in UNet(spec.arch, device="meta").state_dict().items()}
    assert len(state) == 686
    config = comfy.model_detection.model_config_from_unet(state, "")
    assert type(config).__name__ == "SD20"
    assert {name: config.unet_config[name] for name in shape} == shape
    assert (config.unet_config["in_channels"], config.unet_config["num_head_channels"]) == (16, 64)


def sampling(base: str, name: str) -> Graph:
    return {
        "base": node("GenDR_LoadBase", base=base),
        "positive": node("ProbePrompt", width=1024, seed=1),
        "negative": node("ProbePrompt", width=1024, seed=2),
        "empty": node("EmptySD3LatentImage", width=64, height=48, batch_size=1),
        "sample": node(
            "KSampler",
            model=["base", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=3,
            steps=2,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "vae": node("GenDR_LoadVAE16", vae_file=TINY_VAE),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("ProbeSave", image=["decode", 0], name=name),
    }


@pytest.mark.usefixtures("bases")
def test_ksampler_samples_it_and_one_step_takes_its_latent(server: Server) -> None:
    for prediction, name in BASES.items():
        graph = sampling(name, prediction)
        graph["unet"] = node("GenDR_LoadUNet", unet=LATENT)
        graph["step"] = node("GenDR_OneStep", latent=["sample", 0], model=["unet", 0], guidance=0.0)
        graph["finish"] = node("GenDR_Decode", latent=["step", 0], model=["unet", 0], vae=["vae", 0])
        graph["finished"] = node("ProbeSave", image=["finish", 0], name=f"{prediction}-restored")
        server.run(graph)
        for output in (prediction, f"{prediction}-restored"):
            image = server.floats(output)
            assert image.shape == (1, 48, 64, 3)
            assert np.isfinite(image).all()
    assert not np.array_equal(server.floats("epsilon"), server.floats("v_prediction"))


def test_a_restorer_of_other_widths_is_no_base(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"GenDR_LoadBase: tiny-latent\.safetensors: expected a UNet of SD2\.1's"):
        server.run(sampling(LATENT, "never"))


def fixing(width: int, seed: int) -> Graph:
    return {
        "empty": node("EmptySD3LatentImage", width=64, height=48, batch_size=1),
        "unet": node("GenDR_LoadUNet", unet=LATENT),
        "prompt": node("ProbePrompt", width=width, seed=seed),
        "fix": node("GenDR_FixPrompt", model=["unet", 0], positive=["prompt", 0], negative=["prompt", 0]),
        "step": node("GenDR_OneStep", latent=["empty", 0], model=["fix", 0], guidance=2.0),
        "vae": node("GenDR_LoadVAE16", vae_file=TINY_VAE),
        "decode": node("GenDR_Decode", latent=["step", 0], model=["fix", 0], vae=["vae", 0]),
        "save": node("ProbeSave", image=["decode", 0], name=f"fixed{seed}"),
    }


def test_the_fixed_prompt_counts_and_the_loaded_model_keeps_its_own(server: Server) -> None:
    server.run(fixing(8, 1))
    first = server.floats("fixed1")
    server.run(fixing(8, 2))
    assert not np.array_equal(first, server.floats("fixed2"))
    server.run(fixing(8, 1) | {"save": node("ProbeSave", image=["decode", 0], name="again")})
    np.testing.assert_array_equal(server.floats("again"), first)


def test_a_clip_of_another_width_is_named(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"GenDR_FixPrompt: expected positive .* got 768 \(SD1\.x\)"):
        server.run(fixing(768, 1))
