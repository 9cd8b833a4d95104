"""Panel whose workers are forked from the warm process: ``python warm_serve.py serve apps/ …``."""

from __future__ import annotations

import warm
from panel.command import main

from workbench.studio import jobs

jobs.subprocess = warm.subprocess_of_forks()
main()
