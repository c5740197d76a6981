"""Single draws: ends and shares."""

import torch

from gendr_train.data.chance import chance, pick, uniform


def test_draws_keep_to_their_ends_and_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = [uniform((2.0, 5.0), generator) for _ in range(400)]
    assert 2.0 <= min(numbers) < 2.1
    assert 4.9 < max(numbers) <= 5.0
    assert uniform((3.0, 3.0), generator) == 3.0
    assert not any(chance(0.0, generator) for _ in range(50))
    assert all(chance(1.0, generator) for _ in range(50))
    picked = [pick((0.0, 3.0, 1.0), generator) for _ in range(400)]
    assert picked.count(0) == 0
    assert 260 <= picked.count(1) <= 340
