"""How the pictures of a folder are made the model's input: size, cut, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import panel_material_ui as pmui

from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.studio.expected import ExpectedInput
from workbench.studio.image_settings import IMAGENET_MEAN, IMAGENET_STD, ImageSettings

NORMALISATIONS = ("auto", "imagenet", "none")


class PictureSettings:
    """``row`` is shown for folders only; ``propose`` fills it for a model."""

    def __init__(self) -> None:
        small: dict[str, Any] = {"size": "small", "margin": 0}
        size: dict[str, Any] = {**small, "start": 0, "end": 8192, "value": 0, "width": 200}
        self.resize = pmui.IntInput(label=_("shorter side, pixels (0: as it is)"), **size)
        self.crop = pmui.IntInput(label=_("cut from the middle (0: all)"), **size)
        titles = (
            _("ImageNet for 3 channels, else none"),
            _("mean and std of ImageNet"),
            _("none: values 0 … 1"),
        )
        self.normalise = pmui.Select(
            label=_("normalise with"),
            options=dict(zip(titles, NORMALISATIONS, strict=True)),
            value="auto",
            width=320,
            **small,
        )
        self.row = aligned(
            self.resize, self.crop, self.normalise, visible=False, margin=(0, 0, 12, 0)
        )

    def propose(self, expected: Sequence[ExpectedInput]) -> None:
        """The size that the model's first input has, if it is a fixed square of pictures."""
        shape = expected[0].shape if expected else None
        fixed = shape is not None and len(shape) == 4 and shape[2] == shape[3]
        side = shape[2] if shape is not None and fixed else 0
        self.resize.value = self.crop.value = side

    @property
    def settings(self) -> ImageSettings:
        mean, std = {
            "auto": (None, None),
            "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
            "none": ((), ()),
        }[self.normalise.value]
        return ImageSettings(int(self.resize.value or 0), int(self.crop.value or 0), mean, std)
