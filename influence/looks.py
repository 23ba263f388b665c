"""What a page shows of an example: its picture, its text, or the first of its numbers."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num
from PIL import Image

from influence.experiment import Experiment
from training.data import load_texts
from training.examples import Examples

SIDE = 48
"""Pixels of a picture's longer side, at most."""
TEXT = 300
"""Characters of a text, at most."""
NUMBERS = 6
"""Of a row of numbers, at most."""

ACROSS, DOWN = 25, 20
"""Pictures on a sheet."""
PER_SHEET = ACROSS * DOWN
MOST_BYTES = 14_000_000
"""Of all sheets: what a browser opens at once."""


@dataclass(frozen=True)
class Looks:
    """How some examples look; each has a picture, a text, or neither."""

    examples: Examples
    texts: Sequence[str] = ()
    """Of text examples, in their order."""

    @property
    def pictured(self) -> bool:
        """Whether the examples are images."""
        return self.examples.inputs.dtype == np.uint8 and self.examples.inputs.ndim == 4

    def picture(self, row: int) -> str:
        """A PNG as a data address; "" of what is no image."""
        return png(_small(np.asarray(self.examples.inputs[row]))) if self.pictured else ""

    def text(self, row: int) -> str:
        """The begin of its text, or of its numbers; "" of an image."""
        if self.texts:
            whole = self.texts[row]
            return whole if len(whole) <= TEXT else whole[:TEXT] + " …"
        values = np.asarray(self.examples.inputs[row])
        if self.pictured or values.ndim != 1:
            return ""
        return ", ".join(f"{value:.3g}" for value in values[:NUMBERS].tolist()) + (
            ", …" if len(values) > NUMBERS else ""
        )

    def sheets(self, order: Int[np.ndarray, " k"]) -> list[str]:
        """Pictures of many examples, `PER_SHEET` on each of several data addresses.

        As many as may be: the sheets end where they would be more than `MOST_BYTES`.

        Args:
            order: rows of the examples, first those that matter most.
        """
        found: list[str] = []
        if not self.pictured:
            return found
        left = MOST_BYTES
        for start in range(0, len(order), PER_SHEET):
            sheet = png(_sheet(np.asarray(self.examples.inputs)[order[start : start + PER_SHEET]]))
            left -= len(sheet)
            if left < 0:
                break
            found.append(sheet)
        return found


def looks_of(experiment: Experiment) -> Looks:
    """How the targets of a run look, of which the first are its training examples."""
    targets = experiment.targets
    if not experiment.vocabulary:
        return Looks(targets.examples)
    ids = np.array([int(id.rsplit(":", 1)[1]) for id in targets.ids])
    config = experiment.config
    return Looks(targets.examples, load_texts(config.data, ids, config.groups.named_by))


def png(pixels: Num[np.ndarray, "h w c"]) -> str:
    """A PNG as a data address."""
    file = io.BytesIO()
    _image(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _image(pixels: Num[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _small(pixels: Num[np.ndarray, "h w c"]) -> Num[np.ndarray, "h2 w2 c"]:
    """No longer than `SIDE`, in its own proportions."""
    longest = max(pixels.shape[:2])
    if longest <= SIDE:
        return pixels
    height, width = (max(1, round(side * SIDE / longest)) for side in pixels.shape[:2])
    smaller = np.asarray(_image(pixels).resize((width, height), Image.Resampling.BOX))
    return smaller.reshape(height, width, -1)


def _sheet(images: Num[np.ndarray, "k h w c"]) -> Num[np.ndarray, "a b c"]:
    """Images in rows, each in the middle of a square."""
    small = np.stack([_small(image) for image in images])
    _, height, width, channels = small.shape
    side = max(height, width)
    cells = np.zeros((PER_SHEET, side, side, channels), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    cells[: len(small), top : top + height, left : left + width] = small
    grid = cells.reshape(DOWN, ACROSS, side, side, channels).swapaxes(1, 2)
    return grid.reshape(DOWN * side, ACROSS * side, channels)
