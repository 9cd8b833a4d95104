"""Reading a whole text file, with errors that name it."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.engine.errors import MissingFile, WrongValue


def read_text(path: str | os.PathLike[str], *, what: str) -> str:
    """The UTF-8 text of ``path``; ``MissingFile`` or ``WrongValue`` naming ``what`` it is."""
    file = Path(path)
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFile(f"the {what} does not exist", where=str(file)) from None
    except UnicodeDecodeError as error:
        raise WrongValue(
            f"the {what} is not UTF-8 text (byte {error.start})", where=str(file)
        ) from None
