"""Tiny text encoders of CLIP's kind with random weights, in the layouts of transformers and OpenCLIP, and vocabularies.

transformers makes the network and what is expected of it; GenDR's own reading of the files has no part in either.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gendr_core.textfile import TextArch

WORDS = ("!", "a</w>", "b</w>", "!</w>", "a", "b", "<|startoftext|>", "<|endoftext|>")
ARCH = TextArch(width=16, layers=2, heads=2, hidden=24, tokens=9, words=len(WORDS))
START, END = len(WORDS) - 2, len(WORDS) - 1


def clip(layers: int = ARCH.layers, *, width: int = ARCH.width) -> Any:
    """Return transformers' CLIPTextModel with seeded weights, biases and norms included."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=ARCH.words,
        hidden_size=width,
        intermediate_size=ARCH.hidden,
        num_hidden_layers=layers,
        num_attention_heads=ARCH.heads,
        max_position_embeddings=ARCH.tokens,
        hidden_act="gelu",
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=0,
    )
    network = CLIPTextModel(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(drawn + ("norm" in name and name.endswith("weight")))
    return network


def plain_state(network: Any) -> dict[str, Tensor]:
    """Return a network's weights without the name of transformers' outermost module."""
    return {name.removeprefix("text_model."): tensor.clone() for name, tensor in network.state_dict().items()}


def openclip_state(network: Any, prefix: str = "cond_stage_model.model.") -> dict[str, Tensor]:
    """Return a network's weights as OpenCLIP keeps them, and the tensors that it has besides."""
    plain, state = plain_state(network), {}
    for name, tensor in plain.items():
        if re.search(r"self_attn\.[qkv]_proj", name):
            continue
        for old, new in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("final_layer_norm", "ln_final"),
        ):
            name = name.replace(old, new)
        state[prefix + name] = tensor
    for layer in {match[1] for match in map(re.compile(r"encoder\.layers\.(\d+)").match, plain) if match}:
        for leaf in ("weight", "bias"):
            parts = [plain[f"encoder.layers.{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            state[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = torch.cat(parts)
    width = plain["final_layer_norm.weight"].numel()
    return {**state, f"{prefix}text_projection": torch.ones(width, width), f"{prefix}logit_scale": torch.tensor(4.6)}


def write_vocabulary(folder: Path) -> Path:
    """Write two words, two letters and CLIP's signs as SD1's tokenizer folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 8192})
    )
    return folder


def write_folder(folder: Path, network: Any) -> Path:
    """Write an encoder with its vocabulary as SD2.1 is published, and return the model's folder."""
    (folder / "text_encoder").mkdir(parents=True)
    state = {f"text_model.{name}": tensor for name, tensor in plain_state(network).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(ARCH.tokens)[None]
    write_state(folder / "text_encoder" / "model.safetensors", state)
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"hidden_act": "gelu"}))
    write_vocabulary(folder / "tokenizer")
    return folder


def write_state(path: Path, state: dict[str, Tensor]) -> Path:
    """Write tensors and return the path."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
    return path


def expected(network: Any, *rows: list[int]) -> list[Tensor]:
    """Return transformers' own embedding of token numbers, [tokens, width] each, after the second layer and the norm.

    Args:
        network: with ``ARCH.layers`` layers or more.
        rows: token numbers, filled up with 0 here.
    """
    tokens = torch.tensor([row + [0] * (ARCH.tokens - len(row)) for row in rows])
    inner = getattr(network, "text_model", network)
    with torch.no_grad():
        hidden = network(tokens, output_hidden_states=True).hidden_states[ARCH.layers]
        return list(inner.final_layer_norm(hidden))
