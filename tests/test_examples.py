"""Every example runs as it stands."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_policies_of_ones_own_exit_early_and_mostly_answer_as_after_all_timesteps(capsys):
    runpy.run_path(str(EXAMPLES[0].parent / "custom_policy.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["LeadPolicy", "ConfidencePolicy", "SettledPolicy"]
    for line in lines[:2]:
        timesteps, agreement = float(line.split()[1]), float(line.split(", ")[1].split(" %")[0])
        assert 1 < timesteps < 8
        assert agreement > 85
