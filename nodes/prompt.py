"""A text prompt of the user's own in place of the one that a model file brings.

Role: between ``loaders`` and the nodes that restore; from then on the prompt is a part of the model.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..gendr_core.errors import OptionError
from .host import HostedUNet
from .sockets import GenDRModel, model_input, node_schema

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch import Tensor

    Conditioning: TypeAlias = list[tuple[Tensor, dict[str, object]]]
    """What a CONDITIONING socket carries: embeddings [1, tokens, width], each with its settings."""

SD2_WIDTH = 1024
ENCODERS = {768: "SD1.x", SD2_WIDTH: "SD2.x", 1280: "SDXL's second CLIP", 2048: "SDXL", 4096: "T5, as in SD3 or Flux"}
"""Whose text encoders give embeddings of a width."""


class FixPrompt(io.ComfyNode):
    """GenDR Fix Prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema."""
        return node_schema(
            "GenDR_FixPrompt",
            "GenDR Fix Prompt",
            "Gives a restoration model a text prompt of your own, for example what is to be seen in the picture, in"
            " place of the one in its file. The prompt comes from CLIP Text Encode with the CLIP of SD2.x.",
            inputs=[
                model_input(),
                io.Conditioning.Input(
                    "positive", tooltip="What the result should look like, from CLIP Text Encode with an SD2.x CLIP."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from; needed for any guidance but 1. Not connected, the model"
                    " keeps its own, if it has one.",
                ),
            ],
            outputs=[
                GenDRModel.Output(
                    display_name="model",
                    tooltip="The model with the new prompt. The one that came in stays as it is; both share their"
                    " weights.",
                )
            ],
            search_aliases=["text prompt", "conditioning", "bake prompt", "caption"],
        )

    @classmethod
    def execute(
        cls, model: HostedUNet, positive: "Conditioning", negative: "Conditioning | None" = None
    ) -> io.NodeOutput:
        """Return the model with other prompts."""
        unet = model.unet
        width = unet.spec.arch.cross_attention_dim
        wanted = unet.prompt(embedding("positive", positive, width))
        unwanted = unet.negative if negative is None else unet.prompt(embedding("negative", negative, width))
        if unwanted is not None:
            wanted, unwanted = of_one_length(wanted, unwanted)
        return io.NodeOutput(replace(model, unet=replace(unet, positive=wanted, negative=unwanted)))


def of_one_length(positive: "Tensor", negative: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return both prompts with as many tokens as the other, since they go through the network together.

    A softmax over keys of which each comes n times is the same as one over each once, so prompts may be repeated as a
    whole.

    Args:
        positive: [tokens, width].
        negative: likewise, with tokens of its own number.
    """
    tokens = math.lcm(len(positive), len(negative))
    return positive.repeat(tokens // len(positive), 1), negative.repeat(tokens // len(negative), 1)


def embedding(name: str, given: "Conditioning", width: int) -> "Tensor":
    """Return the prompt of a CONDITIONING: [tokens, width], float32, on the CPU.

    Raises:
        OptionError: it holds several prompts or an empty one, or comes from another text encoder.
    """
    if len(given) != 1 or given[0][0].shape[0] != 1:
        count = sum(entry[0].shape[0] for entry in given)
        raise OptionError(
            f"expected one prompt in {name}, got {count}: connect CLIP Text Encode directly, without nodes that combine"
            " or batch prompts"
        )
    prompt = given[0][0][0]
    if prompt.shape[-1] != width:
        wanted = "a CLIP of SD2.x" if width == SD2_WIDTH else f"a text encoder of width {width}"
        whose = ENCODERS.get(prompt.shape[-1], "another text encoder")
        raise OptionError(
            f"expected {name} from {wanted} ({width} numbers per token), got {prompt.shape[-1]} ({whose}): load"
            f" {wanted} and encode the text with it"
        )
    return prompt.float().cpu()
