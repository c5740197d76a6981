"""Low-rank adapters (LoRA, arXiv:2106.09685) as peft names them: read from tensors, checked, merged in float32.

Role: below ``relatives``, which know whose adapters these are. Names of layers are those of diffusers, as in ``nets``.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .errors import CheckpointError, listed

State = Mapping[str, Tensor]

PEFT_ALPHA = 8.0
"""LoraConfig's own ``lora_alpha``, which stands where a training code sets none; files do not store it."""
_HALF = re.compile(r"(.+)\.lora_([AB])(?:\.([\w-]+))?\.weight")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The low-rank change of one layer: up @ down, times a scale."""

    down: Tensor
    """peft's A: [rank, channels_in] or [rank, channels_in, k, k]."""
    up: Tensor
    """peft's B: [channels_out, rank] or [channels_out, rank, 1, 1]."""

    @property
    def rank(self) -> int:
        """How many directions the change has."""
        return self.down.shape[0]

    @property
    def sizes(self) -> tuple[int, int]:
        """Sizes of ``delta``."""
        return self.up.shape[0], self.down[0].numel()

    def delta(self, mix: Tensor | None = None) -> Tensor:
        """Return the change before it is scaled, [channels_out, channels_in * k * k], float32.

        A convolution by A followed by a 1x1 convolution by B is one by B @ A with A's kernel flattened, so that linear
        layers and convolutions are the same here.

        Args:
            mix: [rank, rank], stands between both halves (S3Diff): up @ mix @ down.
        """
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return up @ down if mix is None else up @ mix.float() @ down


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """What training changed in a network."""

    adapters: Mapping[str, Mapping[str, Adapter]]
    """By the adapter's name ("" where it has none), then by layer."""
    trained: State
    """Whole tensors, by their names in the network; they replace its own."""

    def layers(self, *names: str) -> dict[str, Adapter]:
        """Return the layers of the adapters of these names together.

        Raises:
            CheckpointError: one is not there, or two change the same layer.
        """
        together: dict[str, Adapter] = {}
        for name in names:
            if name not in self.adapters:
                raise CheckpointError(
                    f"expected an adapter {name!r}, got {', '.join(map(repr, self.adapters)) or 'none'}: the file is"
                    " incomplete, or another model's"
                )
            twice = sorted(together.keys() & self.adapters[name].keys())
            if twice:
                raise CheckpointError(f"two adapters change {listed(twice)}, expected one: the file is damaged")
            together.update(self.adapters[name])
        return together


def split_adapters(tensors: State) -> Adapted:
    """Return a file's tensors as adapters and wholly trained tensors.

    Raises:
        CheckpointError: half of an adapter is missing, its halves do not fit, or it is of a kind that is not known.
    """
    halves: dict[str, dict[str, dict[str, Tensor]]] = {}
    trained: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _HALF.fullmatch(name)
        if match is not None:
            layer, half, adapter = match.groups()
            halves.setdefault(adapter or "", {}).setdefault(layer, {})[half] = tensor
        elif "lora_" in name:
            raise CheckpointError(f"the adapter tensor {name!r} is of a kind that GenDR does not know")
        else:
            trained[name.replace(".base_layer.", ".")] = tensor
    alone = [f"{layer} ({name or 'unnamed'})" for name, of in halves.items() for layer in of if len(of[layer]) != 2]
    if alone:
        raise CheckpointError(f"one half of the adapter is missing in {listed(alone)}: the file is incomplete")
    adapters = {
        name: {layer: _adapter(layer, both["A"], both["B"]) for layer, both in of.items()}
        for name, of in halves.items()
    }
    return Adapted(adapters, trained)


def _adapter(layer: str, down: Tensor, up: Tensor) -> Adapter:
    fits = down.ndim == up.ndim and down.ndim in (2, 4) and up.shape[1] == down.shape[0] and up.shape[1] > 0
    if not fits or up.shape[2:] not in ((), (1, 1)):
        raise CheckpointError(
            f"the halves of the adapter of {layer} do not fit: A is {list(down.shape)}, B is {list(up.shape)}"
        )
    return Adapter(down, up)


def check_layers(found: Collection[str], expected: Collection[str], whose: str) -> None:
    """Check that exactly the expected layers have adapters.

    Raises:
        CheckpointError: some are missing, or some have one that were not expected; ``whose`` says of which network.
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [
        f"{len(names)} {what}: {listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    if problems:
        raise CheckpointError(
            f"expected adapters for {len(set(expected))} layers of the {whose}; {'; '.join(problems)}. The adapter file"
            " is incomplete, or made for another base model"
        )


def with_trained(base: State, trained: State, whose: str) -> dict[str, Tensor]:
    """Return the weights with the wholly trained ones in place of their own.

    Raises:
        CheckpointError: the network has no such tensor, or one of another shape.
    """
    unknown = sorted(trained.keys() - base.keys())
    if unknown:
        raise CheckpointError(f"the {whose} has no {listed(unknown)}: the adapter file is made for another base model")
    wrong = [
        f"{name} is {list(tensor.shape)}, not {list(base[name].shape)}"
        for name, tensor in trained.items()
        if tensor.shape != base[name].shape
    ]
    if wrong:
        raise CheckpointError(f"trained weights do not fit the {whose}: {listed(wrong)}. Give the base it was made for")
    return {**base, **trained}


class _Merged(Mapping[str, Tensor]):
    """Weights of which each changed one is computed when it is asked for: a UNet in float32 would take 3.5 GB."""

    def __init__(self, base: State, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self._base = base
        self._changes = changes

    def __getitem__(self, name: str) -> Tensor:
        weight = self._base[name]
        return self._changes[name](weight) if name in self._changes else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def merge(
    base: State,
    layers: Mapping[str, Adapter],
    scale: Callable[[Adapter], float],
    mix: Callable[[str], Tensor] | None = None,
) -> State:
    """Return the weights with W + scale * up @ mix @ down in place of W, float32 where they changed.

    A changed weight is computed each time that it is asked for.

    Args:
        base: the network's weights; not changed.
        layers: adapters by layer.
        scale: what each adapter counts, alpha / rank in peft.
        mix: [rank, rank] by layer, see ``Adapter.delta``; None for plain adapters.

    Raises:
        CheckpointError: a layer does not exist, or its weight has another size than the change.
    """

    def change(layer: str, adapter: Adapter) -> Callable[[Tensor], Tensor]:
        middle = None if mix is None else mix(layer)
        return lambda weight: weight.float().add(adapter.delta(middle).reshape(weight.shape), alpha=scale(adapter))

    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for layer, adapter in layers.items():
        name = f"{layer}.weight"
        if name not in base:
            raise CheckpointError(f"the base has no {name}: the adapter file is made for another base model")
        sizes, expected = adapter.sizes, tuple(base[name].flatten(1).shape)
        if sizes != expected:
            raise CheckpointError(
                f"the adapter of {layer} changes a weight of {list(sizes)}, the base has {list(expected)}:"
                " give the base model that it was made for"
            )
        changes[name] = change(layer, adapter)
    return _Merged(base, changes)


def peft_scale(adapter: Adapter) -> float:
    """Return alpha / rank with peft's own alpha, for files that were trained without setting one."""
    return PEFT_ALPHA / adapter.rank
