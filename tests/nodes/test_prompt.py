from typing import Any

import pytest
import torch
from networks import PROMPT_DIM, TOKENS
from pack import Pack
from weights import LATENT, PIXEL

SAMPLES = {"samples": torch.rand(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))}


def run(pack: Pack, node_id: str, **inputs: Any) -> Any:
    with torch.inference_mode():
        return pack.nodes[node_id].execute(**inputs).args[0]


def conditioning(seed: int, tokens: int = TOKENS, width: int = PROMPT_DIM) -> list[Any]:
    prompt = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))
    return [[prompt, {"pooled_output": None}]]


def step(pack: Pack, model: Any, guidance: float = 1.0) -> torch.Tensor:
    return run(pack, "GenDR_OneStep", latent=SAMPLES, model=model, guidance=guidance)["samples"]


@pytest.fixture
def model(pack: Pack) -> Any:
    return run(pack, "GenDR_LoadUNet", unet=LATENT)


def test_the_prompt_is_exchanged_in_a_model_of_its_own(pack: Pack, model: Any) -> None:
    before = step(pack, model)
    fixed = run(pack, "GenDR_FixPrompt", model=model, positive=conditioning(1))
    assert torch.equal(fixed.unet.positive, model.unet.prompt(conditioning(1)[0][0][0]))
    assert fixed.patcher is model.patcher
    assert not torch.equal(step(pack, fixed), before)
    assert torch.equal(step(pack, model), before)
    again = run(pack, "GenDR_FixPrompt", model=model, positive=[[conditioning(1)[0][0].half(), {}]])
    torch.testing.assert_close(step(pack, again), step(pack, fixed), rtol=0, atol=0.01)
    assert again.unet.positive.dtype == torch.float32


def test_guidance_needs_a_negative_prompt(pack: Pack, model: Any) -> None:
    without = pack.host.replace(model, unet=pack.host.replace(model.unet, negative=None))
    fixed = run(pack, "GenDR_FixPrompt", model=without, positive=conditioning(1))
    with pytest.raises(ValueError, match=r"negative prompt for guidance 3\.0"):
        step(pack, fixed, guidance=3.0)
    guided = run(pack, "GenDR_FixPrompt", model=without, positive=conditioning(1), negative=conditioning(2))
    assert torch.equal(guided.unet.negative, model.unet.prompt(conditioning(2)[0][0][0]))
    assert not torch.equal(step(pack, guided, guidance=3.0), step(pack, fixed))
    kept = run(pack, "GenDR_FixPrompt", model=model, positive=conditioning(1))
    assert torch.equal(kept.unet.negative, model.unet.negative)


def test_prompts_of_different_lengths_say_the_same_as_by_themselves(pack: Pack, model: Any) -> None:
    positive, negative = conditioning(1, tokens=4), conditioning(2, tokens=6)
    fixed = run(pack, "GenDR_FixPrompt", model=model, positive=positive, negative=negative)
    assert fixed.unet.positive.shape == fixed.unet.negative.shape == (12, model.unet.network.context_width)
    assert model.unet.prompt(positive[0][0][0]).shape == (4, model.unet.network.context_width)
    alone = [
        step(pack, pack.host.replace(model, unet=pack.host.replace(model.unet, positive=given)))
        for given in (model.unet.prompt(prompt[0][0][0]) for prompt in (negative, positive))
    ]
    expected = alone[0] + 3.0 * (alone[1] - alone[0])
    torch.testing.assert_close(step(pack, fixed, guidance=3.0), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("width", "whose"), [(768, "SD1.x"), (2048, "SDXL"), (4096, "T5"), (5, "another")])
def test_another_text_encoder_is_named(pack: Pack, model: Any, width: int, whose: str) -> None:
    arch = pack.host.replace(model.unet.spec.arch, cross_attention_dim=1024)
    unet = pack.host.replace(model.unet, spec=pack.host.replace(model.unet.spec, arch=arch))
    with pytest.raises(ValueError, match=rf"positive from a CLIP of SD2\.x \(1024 .* got {width} \({whose}"):
        run(
            pack,
            "GenDR_FixPrompt",
            model=pack.host.replace(model, unet=unet),
            positive=conditioning(1, width=width),
        )


def test_a_model_without_text_says_what_it_would_take(pack: Pack) -> None:
    mini = run(pack, "GenDR_LoadUNet", unet=PIXEL)
    fits, too_wide = conditioning(1), conditioning(1, width=1024)
    with pytest.raises(ValueError, match=r"negative from a text encoder of width 8 .* got 1024 \(SD2\.x\)"):
        run(pack, "GenDR_FixPrompt", model=mini, positive=fits, negative=too_wide)


def test_several_prompts_are_refused(pack: Pack, model: Any) -> None:
    combined = conditioning(1) + conditioning(2)
    batched = [[torch.zeros(2, PROMPT_DIM, TOKENS), {}]]
    for prompts in (combined, batched):
        with pytest.raises(ValueError, match="expected one prompt in positive, got 2"):
            run(pack, "GenDR_FixPrompt", model=model, positive=prompts)
