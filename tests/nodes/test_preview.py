import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pack import Pack
from weights import PIXEL

from gendr_core.geometry import Span


@pytest.fixture
def preview(pack: Pack) -> ModuleType:
    return sys.modules[f"{pack.host.__package__}.preview"]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1, (1, 1)), (64, 192, (192, 64)), (1024, 512, (256, 512)), (64, 8192, (512, 4)), (8, 8192, (512, 1))],
)
def test_pictures_keep_the_aspect_and_stay_small(
    preview: ModuleType, height: int, width: int, expected: tuple[int, int]
) -> None:
    thumbnail = preview.Thumbnail(torch.full((1, 3, height, width), -1.0))
    # Parts of one pixel in every corner, and a whole frame with values out of range.
    for row in (0, height - 1):
        for column in (0, width - 1):
            thumbnail.paste(torch.zeros(1, 3, 1, 1), Span(row, row + 1), Span(column, column + 1))
    assert thumbnail.picture().size == expected
    assert {0, 128} >= set(np.unique(np.asarray(thumbnail.picture())))
    thumbnail.paste(torch.full((1, 3, height, width), 3.0), Span(0, height), Span(0, width))
    assert np.asarray(thumbnail.picture()).min() == 255


def test_parts_appear_where_they_belong(preview: ModuleType) -> None:
    thumbnail = preview.Thumbnail(torch.full((1, 3, 1024, 2048), -1.0))
    thumbnail.paste(torch.ones(1, 3, 512, 1024), Span(512, 1024), Span(0, 1024))
    picture = np.asarray(thumbnail.picture())[..., 0]
    assert picture.shape == (256, 512)
    assert (picture[128:, :256] == 255).all()
    assert picture.astype(float).sum() == 128 * 256 * 255


def test_pictures_come_with_progress_and_not_too_often(preview: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int, Any]] = []
    now = 100.0
    monkeypatch.setattr(preview.time, "monotonic", lambda: now)
    display = preview.Display(lambda *message: sent.append(message))
    rows, part = Span(0, 8), torch.zeros(1, 3, 8, 8)
    display.show(part, rows, rows)
    display.begin(torch.zeros(1, 3, 16, 16))
    display.show(part, rows, rows)
    assert sent == []
    whole = (torch.zeros(1, 3, 16, 16), Span(0, 16), Span(0, 16))
    display.update(1, 10)
    now += 1.0
    display.show(part, rows, rows)
    display.show(*whole)
    display.update(2, 10)
    now += 1.0
    display.update(3, 10)
    display.update(10, 10)
    display.show(*whole)
    assert [(done, picture is not None) for done, _, picture in sent] == [
        (1, False),
        (1, True),
        (3, True),
        (10, False),
        (10, True),
    ]


def test_restore_ends_with_a_picture_of_the_restored_frame(pack: Pack) -> None:
    image = torch.rand(1, 40, 24, 3, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        model = pack.nodes["GenDR_LoadUNet"].execute(PIXEL).args[0]
        widgets = {"size": "by factor", "factor": 1.6, "edge": 1, "color": "none"} | {
            "detail": 1.0,
            "feather": 0,
            "guidance": 0.0,
        }
        restored = pack.nodes["GenDR_Restore"].execute(image, model, **widgets).args[0]
    kind, picture, edge = pack.record.pictures[-1]
    assert (kind, picture.size, edge) == ("JPEG", (64, 64), 512)
    # The frame of 38x64 in the middle of its padding.
    shown = np.asarray(picture)[:, 13:51].astype(np.float32)
    np.testing.assert_allclose(shown, restored[0].numpy() * 255, atol=0.51)
