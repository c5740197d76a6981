import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from networks import tiny_vae
from torch import Tensor, nn

from gendr_core.errors import CheckpointError
from gendr_train.errors import TrainingError
from gendr_train.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FeatureNetwork,
    Projection,
    VaeFeatures,
    build_features,
)
from gendr_train.sections import FeatureConfig


def pixels(height: int = 64, width: int = 48) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a random DINOv2 of two layers and eight channels."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def transformer(name: str, *layers: int) -> FeatureNetwork:
    return build_features(FeatureConfig(kind="transformers", name=name, layers=layers))


def check_frozen(network: FeatureNetwork) -> None:
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in nn.ModuleList([network]).train().children())
    x = pixels().requires_grad_()
    sum((output.square().mean() for output in network(x)), torch.zeros(())).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0.0


def test_patches_of_a_transformer_become_maps(dino: str) -> None:
    network = transformer(dino, 0, -1)
    outputs = network(pixels())
    # 16 px of the image per token.
    assert network.channels == (8, 8)
    assert [output.shape for output in outputs] == [(2, 8, 4, 3)] * 2
    check_frozen(network)


@pytest.mark.parametrize(("height", "width", "shape"), [(512, 512, (32, 32)), (40, 7, (2, 1)), (56, 24, (4, 2))])
def test_any_size_of_image_is_cut_into_whole_patches(
    dino: str, height: int, width: int, shape: tuple[int, int]
) -> None:
    (output,) = transformer(dino, 0)(pixels(height, width))
    assert output.shape[2:] == shape


def test_maps_are_the_tokens_of_the_model_itself(dino: str) -> None:
    from transformers import AutoModel

    network = transformer(dino, 1, 2, -1)
    # A picture of one colour stays one when it is resized.
    image = torch.tensor([0.2, -0.4, 0.6])[None, :, None, None].expand(1, 3, 32, 48)
    given = torch.stack(
        [(0.5 * c + 0.5 - m) / s for c, m, s in zip(image[0], IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    )
    outputs = AutoModel.from_pretrained(dino)(given[None, :, :28, :42], output_hidden_states=True)
    tokens = (outputs.hidden_states[1], outputs.last_hidden_state, outputs.last_hidden_state)
    for output, expected in zip(network(image), tokens, strict=True):
        # The class token comes first, then patches row by row.
        for row in range(2):
            for column in range(3):
                patch = expected[:, 1 + 3 * row + column]
                torch.testing.assert_close(output[:, :, row, column], patch, rtol=1e-4, atol=1e-5)


def test_levels_of_a_vae_become_maps() -> None:
    network = build_features(FeatureConfig(kind="vae16", name="gendr-mini-vae16.safetensors", layers=(0, 2, -1)))
    outputs = network(pixels())
    assert [output.shape[1] for output in outputs] == list(network.channels)
    assert [output.shape[2:] for output in outputs] == [(64, 48), (16, 12), (8, 6)]
    check_frozen(network)


def test_levels_of_a_vae_are_those_of_its_encoder() -> None:
    vae = tiny_vae().network
    seen: list[object] = []
    vae.encoder.down_blocks[1].get_submodule("resnets.0").register_forward_hook(lambda _m, _i, out: seen.append(out))
    vae.encode(pixels())
    (output,) = VaeFeatures(vae, (1,))(pixels())
    assert isinstance(seen[0], Tensor)
    assert torch.equal(output, seen[0])


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm and torchvision are not installed",
)
def test_stages_of_a_network_of_timm_become_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = importlib.import_module("timm")
    create = timm.create_model
    # Without a download: random weights of the same network.
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, "pretrained": False}))
    network = build_features(FeatureConfig(kind="timm", name="resnet10t", layers=(0, -1)))
    outputs = network(pixels())
    assert [output.shape[1] for output in outputs] == list(network.channels)
    assert [output.shape[2:] for output in outputs] == [(32, 24), (2, 2)]
    check_frozen(network)


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_missing_package_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(TrainingError, match=f"expected the package {kind}"):
        build_features(FeatureConfig(kind=kind, name="any"))  # pyright: ignore[reportArgumentType]


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere"):
        transformer(str(tmp_path / "nowhere"), 0)
    with pytest.raises(CheckpointError, match="nowhere"):
        build_features(FeatureConfig(kind="vae16", name=str(tmp_path / "nowhere"), layers=(0,)))


@pytest.mark.parametrize("layer", [3, -4])
def test_missing_layer_is_named(dino: str, layer: int) -> None:
    with pytest.raises(TrainingError, match=rf"from -3 to 2, got {layer}"):
        transformer(dino, 0, layer)


def test_network_without_patches_is_refused(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="patch_size, got ResNetModel"):
        transformer(str(tmp_path), 0)


def test_projection_mixes_channels_of_each_position() -> None:
    torch.manual_seed(0)
    head = Projection(5, 7, 3)
    features = torch.randn(2, 5, 4, 6)
    output = head(features)
    assert output.shape == (2, 3, 4, 6)
    first, first_bias, second, second_bias = head.parameters()
    hidden = features[1, :, 2, 3] @ first.flatten(1).T + first_bias
    expected = (hidden * hidden.sigmoid()) @ second.flatten(1).T + second_bias
    torch.testing.assert_close(output[1, :, 2, 3], expected)
