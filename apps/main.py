"""``panel serve apps/``: the workbench."""

from workbench.app.serve import workbench_page

workbench_page().servable(title="Compression Workbench")
