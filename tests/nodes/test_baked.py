"""Baked files in the nodes: they load and restore like plain ones, and say what they cannot do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pack import Pack
from weights import LATENT

from gendr_core.bake import bake_unet

SAMPLES = {"samples": torch.rand(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))}
BAKED = "baked-latent.safetensors"


@pytest.fixture
def baked(pack: Pack) -> Pack:
    """The pack with a baked UNet beside the plain ones."""
    plain = Path(pack.host.weight_path("diffusion_models", LATENT))
    bake_unet(plain, plain.with_name(BAKED), "fp32")
    return pack


def run(pack: Pack, node_id: str, **inputs: Any) -> Any:
    with torch.inference_mode():
        return pack.nodes[node_id].execute(**inputs).args[0]


def test_a_baked_model_steps_as_the_plain_one(baked: Pack) -> None:
    steps: list[torch.Tensor] = []
    for name in (LATENT, BAKED):
        model = run(baked, "GenDR_LoadUNet", unet=name)
        steps.append(run(baked, "GenDR_OneStep", latent=SAMPLES, model=model, guidance=1.0)["samples"])
    assert torch.equal(*steps)


def test_the_prompt_node_says_that_the_prompt_is_baked_in(baked: Pack) -> None:
    model = run(baked, "GenDR_LoadUNet", unet=BAKED)
    given = [[torch.zeros(1, 3, model.unet.spec.arch.cross_attention_dim), {"pooled_output": None}]]
    with pytest.raises(ValueError, match="got one with its prompt baked in: load the file that it was baked from"):
        run(baked, "GenDR_FixPrompt", model=model, positive=given)


def test_a_baked_file_is_no_base_for_the_hosts_samplers(baked: Pack) -> None:
    with pytest.raises(ValueError, match=f"{BAKED}: expected plain weights, got baked ones"):
        baked.nodes["GenDR_LoadBase"].execute(BAKED)
