"""Damage by place in the row: an image's damage does not depend on its batch."""

import pytest
import torch

from gendr_train.data.damage import damage_batch
from gendr_train.degradations import PRESETS


@pytest.mark.parametrize("preset", ["realesrgan", "photo"])
def test_a_batch_is_its_images_one_by_one(preset: str) -> None:
    originals = torch.randint(0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    positions = torch.tensor([7, 3, 1000003, 0, 8])
    whole = damage_batch(originals, positions, PRESETS[preset], 5)
    assert (whole.shape, whole.dtype) == ((5, 3, 16, 16), torch.float32)
    singles = [damage_batch(originals[i : i + 1], positions[i : i + 1], PRESETS[preset], 5) for i in range(5)]
    assert torch.equal(whole, torch.cat(singles))
    assert torch.equal(whole[[4, 0]], damage_batch(originals[[4, 0]], positions[[4, 0]], PRESETS[preset], 5))


def test_the_same_image_elsewhere_or_in_another_run_is_damaged_otherwise() -> None:
    original = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ranges = PRESETS["realesrgan"]
    here, there, other = (
        damage_batch(original, torch.tensor([position]), ranges, seed) for position, seed in ((1, 0), (2, 0), (1, 1))
    )
    assert not torch.equal(here, there)
    assert not torch.equal(here, other)
