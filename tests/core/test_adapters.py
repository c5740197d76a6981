import pytest
import torch
import torch.nn.functional as F
from relative_files import noise
from torch import Tensor

from gendr_core.adapters import (
    Adapter,
    check_layers,
    merge,
    peft_scale,
    split_adapters,
    with_trained,
)
from gendr_core.errors import CheckpointError

LINEAR = {"a.lora_A.x.weight": noise("down", (2, 6)), "a.lora_B.x.weight": noise("up", (5, 2))}


def test_a_merged_linear_layer_is_the_layer_and_its_adapter() -> None:
    weight, x = noise("weight", (5, 6)), noise("x", (3, 6))
    down, up = LINEAR.values()
    merged = merge({"a.weight": weight}, split_adapters(LINEAR).layers("x"), peft_scale)
    assert torch.allclose(x @ merged["a.weight"].T, x @ weight.T + 4.0 * (x @ down.T @ up.T), atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_a_merged_convolution_is_the_convolution_and_its_adapter(kernel: int, stride: int) -> None:
    weight, x = noise("weight", (5, 6, kernel, kernel)), noise("x", (1, 6, 7, 9))
    down, up = noise("down", (2, 6, kernel, kernel)), noise("up", (5, 2, 1, 1))
    merged = merge({"a.weight": weight}, {"a": Adapter(down, up)}, lambda _: 0.5)["a.weight"]

    def conv(kernels: Tensor) -> Tensor:
        return F.conv2d(x, kernels, stride=stride, padding=kernel // 2)

    expected = conv(weight) + 0.5 * F.conv2d(conv(down), up)
    assert torch.allclose(conv(merged), expected, atol=1e-4)


def test_a_mix_stands_between_the_halves() -> None:
    mix, x = noise("mix", (2, 2)), noise("x", (3, 6))
    adapter = split_adapters(LINEAR).layers("x")["a"]
    change = merge({"a.weight": torch.zeros(5, 6)}, {"a": adapter}, lambda _: 1.0, lambda _: mix)["a.weight"]
    assert torch.allclose(x @ change.T, x @ adapter.down.T @ mix.T @ adapter.up.T, atol=1e-5)


def test_half_precision_is_merged_in_full_precision_and_the_base_is_left_alone() -> None:
    weight = noise("weight", (5, 6)).half()
    base = {"a.weight": weight, "b.weight": weight}
    merged = merge(base, split_adapters(LINEAR).layers("x"), peft_scale)
    assert merged["a.weight"].dtype == torch.float32
    assert merged["b.weight"] is weight
    assert base["a.weight"] is weight


def test_base_layers_and_plain_tensors_are_trained_ones() -> None:
    found = split_adapters({**LINEAR, "a.base_layer.weight": torch.ones(5, 6), "c.bias": torch.ones(2)})
    assert found.trained.keys() == {"a.weight", "c.bias"}
    assert found.adapters.keys() == {"x"}
    assert with_trained({"a.weight": torch.zeros(5, 6), "c.bias": torch.zeros(2)}, found.trained, "UNet")[
        "c.bias"
    ].equal(torch.ones(2))


def test_an_adapter_without_a_name_is_read_too() -> None:
    found = split_adapters({name.replace(".x.", "."): tensor for name, tensor in LINEAR.items()})
    assert found.layers("").keys() == {"a"}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a.lora_A.x.weight": torch.zeros(2, 6)}, "one half of the adapter is missing in a"),
        ({**LINEAR, "a.lora_B.x.weight": torch.zeros(5, 3)}, r"do not fit: A is \[2, 6\], B is \[5, 3\]"),
        ({**LINEAR, "a.lora_B.x.weight": torch.zeros(5, 2, 3, 3)}, "do not fit"),
        ({**LINEAR, "a.lora_magnitude_vector.x": torch.zeros(5)}, "of a kind that GenDR does not know"),
    ],
)
def test_what_is_no_pair_of_halves_is_refused(tensors: dict[str, Tensor], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        split_adapters(tensors)


def test_missing_and_unknown_layers_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"for 2 layers of the UNet; 1 missing: b; 1 unknown: c\."):
        check_layers(["a", "c"], ["a", "b"], "UNet")


def test_an_adapter_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match="expected an adapter 'y', got 'x'"):
        split_adapters(LINEAR).layers("y")


def test_two_adapters_of_one_layer_are_not_taken_for_one() -> None:
    both = {**LINEAR, **{name.replace(".x.", ".y."): tensor for name, tensor in LINEAR.items()}}
    with pytest.raises(CheckpointError, match="two adapters change a"):
        split_adapters(both).layers("x", "y")


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"b.weight": torch.zeros(5, 6)}, "the base has no a.weight"),
        ({"a.weight": torch.zeros(5, 7)}, r"changes a weight of \[5, 6\], the base has \[5, 7\]"),
    ],
)
def test_an_adapter_for_another_base_is_refused(base: dict[str, Tensor], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        merge(base, split_adapters(LINEAR).layers("x"), peft_scale)


@pytest.mark.parametrize(
    ("trained", "says"), [("b.weight", "has no b.weight"), ("a.weight", r"a.weight is \[2\], not")]
)
def test_trained_weights_for_another_base_are_refused(trained: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        with_trained({"a.weight": torch.zeros(5, 6)}, {trained: torch.zeros(2)}, "UNet")
