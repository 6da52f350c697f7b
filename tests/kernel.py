"""Runs notebooks in a real Jupyter kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient

ROOT = Path(__file__).parent.parent


def run(notebook: Any, scratch: Path, monkeypatch: Any) -> None:
    """Run the cells of a notebook in the root of the project, and keep their outputs in it; what they raise is raised.

    Args:
        notebook: as ``nbformat`` reads it.
        scratch: a folder for what IPython and Jupyter write beside it.
        monkeypatch: pytest's.
    """
    monkeypatch.setenv("IPYTHONDIR", str(scratch / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(scratch / "runtime"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tests run side by side
    client = nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=180, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
