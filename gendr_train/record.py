"""What a run tells: lines in its log, values in ``metrics.jsonl`` and TensorBoard, pictures in TensorBoard.

Role: used by ``loop``; only the main process writes.
"""

import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

logger = logging.getLogger(__name__)


class Recorder:
    """Writes into the folder of a run while it is entered."""

    def __init__(self, folder: Path, *, active: bool) -> None:
        """Remember where; nothing is written yet.

        Args:
            folder: of the run.
            active: false in all processes but the main one.
        """
        self._folder, self._active = folder, active
        self._board: SummaryWriter | None = None

    def __enter__(self) -> "Recorder":
        """Make the folder and open the board."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._active:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(self._folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the board."""
        if self._board is not None:
            self._board.close()

    def values(self, kind: str, images: int, values: dict[str, float]) -> None:
        """Write named numbers.

        Args:
            kind: train or validation.
            images: images seen.
            values: by name; nothing is written where there are none.
        """
        if self._board is None or not values:
            return
        logger.info("%s %d | %s", kind, images, " | ".join(f"{name} {value:.5g}" for name, value in values.items()))
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "images": images, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, images)  # pyright: ignore[reportUnknownMemberType]

    def pictures(self, images: int, pictures: dict[str, Tensor]) -> None:
        """Write pictures.

        Args:
            images: images seen.
            pictures: name -> [N, 3, H, W] float in 0 to 1.
        """
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_images(name, picture, images)  # pyright: ignore[reportUnknownMemberType]


class Tally:
    """Running means between two log lines."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._images = 0
        self._started_s = time.perf_counter()

    def add(self, values: dict[str, float], images: int) -> None:
        """Take the values of a batch.

        Args:
            values: by name; a name may be missing at times.
            images: in the batch.
        """
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._images += images

    def means(self) -> dict[str, float]:
        """Return the means and the speed; validation and saving count as time."""
        speed = self._images / (time.perf_counter() - self._started_s)
        return {**{name: total / self._counts[name] for name, total in self._sums.items()}, "images_per_s": speed}
