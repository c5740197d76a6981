"""What a UNet is told about an image: captions as embeddings, and the two fixed prompts that an exported file holds.

Role: part of the stages with prompts; ``sample`` borrows the text encoder. As in SD2.1 an embedding is the text
encoder's last hidden state: that encoder was cut to 23 layers, so its last is the penultimate one of OpenCLIP's.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .errors import TrainingError
from .rng import Draws
from .sections import PromptConfig

CACHED = 256
"""Embeddings kept for captions that come again: 80 MB at SD2.1's 77 x 1024."""


class TextEncoder:
    """A tokenizer with its frozen text encoder: no part of a stage's parameters, its state or its engine."""

    def __init__(self, tokenizer: object, network: nn.Module) -> None:
        """Freeze the network.

        Args:
            tokenizer: of transformers.
            network: CLIPTextModel of transformers.
        """
        self._tokenizer = cast("Any", tokenizer)
        self._network = network.requires_grad_(False).eval().float()
        self._known: dict[str, Tensor] = {}

    @classmethod
    def load(cls, name: str, dim: int) -> "TextEncoder":
        """Return the text encoder of a diffusers model.

        Args:
            name: folder or hub name with the subfolders ``tokenizer`` and ``text_encoder``.
            dim: cross_attention_dim of the UNet.

        Raises:
            TrainingError: it cannot be read, lacks weights, or its vocabulary or width do not fit.
        """
        from transformers import CLIPTextModel, CLIPTokenizer

        try:
            tokenizer = cast("Any", CLIPTokenizer).from_pretrained(name, subfolder="tokenizer")
            network, info = cast("Any", CLIPTextModel).from_pretrained(
                name, subfolder="text_encoder", output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"expected a model with tokenizer and text_encoder as prompt.text_encoder, got {name!r}: {error}"
            ) from error
        # transformers fills what a file lacks with random numbers, and a tokenizer without files is an empty one.
        if info["missing_keys"]:
            raise TrainingError(
                f"expected a whole text_encoder in {name!r}, got one without {min(info['missing_keys'])}"
            )
        words, width = network.config.vocab_size, network.config.hidden_size
        if len(tokenizer) != words:
            raise TrainingError(f"expected a tokenizer of {words} words in {name!r}, got one of {len(tokenizer)}")
        if width != dim:
            raise TrainingError(f"expected embeddings of width {dim} as the UNet takes them, got {width} from {name!r}")
        return cls(tokenizer, network)

    @torch.no_grad()
    def encode(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Return embeddings [B, tokens, dim] float32: 77 tokens in SD2.1, longer captions cut, shorter ones padded.

        Args:
            captions: at least one.
            device: where the encoder runs; it moves there.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            self._known.update(zip(new, self._run(new, device).unbind(), strict=True))
        embeddings = torch.stack([self._known[caption].to(device) for caption in captions])
        for caption in list(self._known)[:-CACHED]:
            del self._known[caption]
        return embeddings

    def _run(self, captions: list[str], device: torch.device) -> Tensor:
        tokens = self._tokenizer(
            captions,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        # In float32 whatever the run is in: the same caption is then the same embedding in and outside of autocast.
        with torch.autocast(device.type, enabled=False):
            # No mask for the padding: SD was trained with it in sight.
            return self._network.to(device)(tokens.input_ids.to(device)).last_hidden_state


def fresh_prompt(dim: int, tokens: int = 1) -> Tensor:
    """Return standard normals, [tokens, dim], from torch's global generator.

    Zeros would be of no use: the key and value layers have no bias, so their output and gradient would stay zero.

    Args:
        dim: cross_attention_dim of the network.
        tokens: length of the prompt.
    """
    return torch.randn(tokens, dim)


class Prompts(nn.Module):
    """The positive and the negative prompt, saved with the stage, and captions where there is a text encoder."""

    positive: Tensor
    """[tokens, dim] float32: of images without a caption, and in the exported file."""
    negative: Tensor
    """The same shape: in place of captions that are dropped, and in the exported file for guidance."""

    def __init__(self, config: PromptConfig, dim: int, *, stored: tuple[Tensor, Tensor | None] | None = None) -> None:
        """Embed the config's prompts; without a text encoder take stored ones, or draw from torch's global generator.

        Args:
            config: text encoder, prompts and dropout.
            dim: cross_attention_dim of the UNet.
            stored: positive and negative prompt [tokens, dim] of the file that training starts from.

        Raises:
            TrainingError: the text encoder is not usable.
        """
        super().__init__()
        self._config = config
        self._encoder = None if config.text_encoder is None else TextEncoder.load(config.text_encoder, dim)
        if self._encoder is not None:
            positive, negative = self._encoder.encode((config.positive, config.negative), torch.device("cpu")).unbind()
        else:
            positive, negative = stored or (fresh_prompt(dim), None)
            negative = fresh_prompt(dim, len(positive)) if negative is None else negative
        self.register_buffer("positive", positive.float().clone())
        self.register_buffer("negative", negative.float().clone())

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return [B, tokens, dim] float32; an empty caption is the positive prompt, and so is all without an encoder.

        Args:
            captions: one per image.
        """
        if self._encoder is None:
            return self.positive.expand(len(captions), -1, -1)
        return self._encoder.encode([text or self._config.positive for text in captions], self.positive.device)

    def conditions(self, captions: Sequence[str], draws: Draws) -> Tensor:
        """Return ``embed`` with the negative prompt in place of the config's share of it, [B, tokens, dim] float32.

        So one network learns both predictions that guidance combines (arXiv:2207.12598, algorithm 1).

        Args:
            captions: one per image.
            draws: of these images; one number of each is drawn.
        """
        dropped = draws.uniform(0.0, 1.0) < self._config.dropout
        return torch.where(dropped[:, None, None], self.negative, self.embed(captions))
