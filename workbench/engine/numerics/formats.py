"""All number formats by the names that configurations use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workbench.engine.errors import WrongValue
from workbench.engine.numerics.element import BlockFormat, ElementFormat
from workbench.engine.numerics.float4 import FLOAT4
from workbench.engine.numerics.float8 import FLOAT8
from workbench.engine.numerics.hifloat4 import HIFLOAT4
from workbench.engine.numerics.hifloat8 import HIFLOAT8
from workbench.engine.numerics.integer_formats import INT4, INT8
from workbench.engine.numerics.microscaling import MXFP4, MXFP8

_elements: tuple[ElementFormat, ...] = (INT8, INT4, FLOAT8, FLOAT4, HIFLOAT8)
_blocks: tuple[BlockFormat, ...] = (MXFP8, MXFP4, HIFLOAT4)

ELEMENT_FORMATS: Mapping[str, ElementFormat] = MappingProxyType({f.name: f for f in _elements})
"""Formats with a code per number; scales are floats that the caller keeps."""

BLOCK_FORMATS: Mapping[str, BlockFormat] = MappingProxyType({f.name: f for f in _blocks})
"""Formats that bring their own scales, one a block."""


def number_format(name: str) -> ElementFormat | BlockFormat:
    """The format of that name; ``ValueError`` when there is none."""
    found = ELEMENT_FORMATS.get(name) or BLOCK_FORMATS.get(name)
    if found is None:
        raise WrongValue(
            f"there is no number format {name!r}; allowed: "
            f"{', '.join((*ELEMENT_FORMATS, *BLOCK_FORMATS))}"
        )
    return found
