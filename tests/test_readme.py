"""Every Python block of README.md and of the documentation runs as it stands, on its own."""

import re
import runpy
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in page.parts
}
BLOCKS = [
    pytest.param(block, id=f"{Path(name).with_suffix('')}-block{i}")
    for name, page in PAGES.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
]


def test_there_are_blocks():
    assert len(BLOCKS) >= 20
    assert "README.md" in PAGES


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = tmp_path / "block.py"  # a model with a time loop in it needs its source
        file.write_text(block)
        runpy.run_path(str(file))


def test_the_measured_table_of_the_policies_is_the_generated_one():
    measured = (ROOT / "benchmarks/policies/results/policies.md").read_text().strip()
    assert measured in PAGES["docs/howto/policies.md"]
