"""Random damage: a pure function of the generator's state."""

import torch

from gendr_train.data.degrade import degrade_randomly
from gendr_train.degradations import PRESETS, Degradation


def _image() -> torch.Tensor:
    return torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def test_same_state_same_damage_and_nothing_else_changes() -> None:
    image = _image()
    before, state = image.clone(), torch.get_rng_state()
    first, second = (degrade_randomly(image, Degradation(), torch.Generator().manual_seed(4)) for _ in range(2))
    other = degrade_randomly(image, Degradation(), torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_draw_is_finite_and_in_range() -> None:
    generator = torch.Generator().manual_seed(1)
    for ranges in (preset for preset in PRESETS.values() if isinstance(preset, Degradation)):
        for _ in range(25):
            damaged = degrade_randomly(_image(), ranges, generator)
            assert damaged.shape == (1, 3, 16, 16)
            assert float(damaged.min()) >= 0.0
            assert float(damaged.max()) <= 1.0


def test_with_everything_off_only_the_size_changes() -> None:
    off = Degradation(blur_probability=0.0, noise_probability=0.0, jpeg_probability=0.0)
    flat = torch.full((1, 3, 64, 64), 0.3)
    damaged = degrade_randomly(flat, off, torch.Generator().manual_seed(0))
    assert torch.allclose(damaged, torch.full((1, 3, 16, 16), 0.3), atol=1e-6)
