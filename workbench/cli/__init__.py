"""The command line: the same projects and the same calls as the page and the notebooks."""

from workbench.cli.main import main

__all__ = ["main"]
