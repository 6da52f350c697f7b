"""Networks with their time loop in ``forward`` that come from notebook cells, strings, scripts and reloaded files."""

from __future__ import annotations

import ast
import asyncio
import copy
import importlib
import linecache
import os
import pickle
import subprocess
import sys
from typing import Any

import nbformat
import pytest
import snntorch
import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import FixedPolicy
from seenn_plugin.stepping.running_source import OtherSource, running_source

from . import kernel
from .kernel import ROOT
from .notebook_nets import CELL, CLASS, IMPORTS, OTHER_CELL, STEPS, assert_stepped, own_answers, refusal, rows

SHARED = """
import torch
torch.set_num_threads(1)
from tests.notebook_nets import assert_stepped, own_answers, refusal, require, rows
"""


@pytest.fixture
def run_cells(tmp_path, monkeypatch):
    """Runs notebook cells in one real kernel."""
    return lambda *cells: kernel.run(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), tmp_path, monkeypatch
    )


def run_python(*arguments: str) -> None:
    """Run Python on something that must not fail."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def executed(text: str, file: str = "<string>") -> dict[str, Any]:
    """The names that ``exec`` defines."""
    names: dict[str, Any] = {"__name__": "executed"}
    exec(compile(text, file, "exec"), names)
    return names


@pytest.fixture
def cell_file():
    """Puts text where a notebook puts that of its cells."""
    name = "<cell of this test>"

    def put(text: str) -> str:
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        return name

    yield put
    linecache.cache.pop(name, None)


# -- notebooks ------------------------------------------------------------------------------------------------------


def test_classes_of_notebook_cells_are_stepped_by_the_code_that_they_run(run_cells, tmp_path):
    run_cells(
        SHARED,
        CELL,
        "old = Net()\nold_answers = assert_stepped(old)",
        # The cell is edited and run again: the class of the same name is another, old networks keep their code.
        OTHER_CELL,
        """
new_answers = assert_stepped(Net())
assert not torch.equal(new_answers, old_answers)
assert torch.equal(assert_stepped(old), old_answers)
""",
        # What is compiled with the class decides about single instructions; magics are no Python.
        f"%matplotlib inline\n%time 1 + 1\n{CELL}\n!ls > /dev/null\n%timeit -n1 -r1 pass\n",
        "assert torch.equal(assert_stepped(Net()), old_answers)",
        f"import asyncio\n{CELL}\nawait asyncio.sleep(0)\n",
        "assert torch.equal(assert_stepped(Net()), old_answers)",
        f"%%capture\n{CLASS}",
        "assert torch.equal(assert_stepped(Net()), old_answers)",
        # Cells keep the future statements of those before them.
        "from __future__ import annotations",
        CELL.replace("rec = []", "rec: list[int] = []\n        def unused(a: int) -> int: ..."),
        "assert torch.equal(assert_stepped(Net()), old_answers)",
        # %%time compiles its cell where it leaves no source.
        f"%%time\n{CLASS}",
        """
reason = refusal(Net())
assert "cannot be read" in reason and "%%time" in reason, reason
""",
        f"# the remedy\n{CLASS}",
        "assert torch.equal(assert_stepped(Net()), old_answers)",
        # A method is replaced while its network is wrapped.
        f"""
from seenn_plugin import EarlyExitWrapper
net = Net().eval()
snn = EarlyExitWrapper(net, "confidence")
assert torch.equal(snn.trace(rows()), old_answers)
def forward(self, x):
{OTHER_CELL.partition("def forward(self, x):")[2]}
Net.forward = forward
assert torch.equal(own_answers(net), new_answers)
assert torch.equal(snn.trace(rows()), new_answers)
""",
        # And by the extension that loads edited files again before each cell.
        f"""
import importlib, pathlib, sys
file = pathlib.Path({str(tmp_path / "autoreloaded.py")!r})
file.write_text({CELL!r})
sys.path.insert(0, str(file.parent))
%load_ext autoreload
%autoreload 2
from autoreloaded import Net
net = Net().eval()
snn = EarlyExitWrapper(net, "confidence")
assert torch.equal(snn.trace(rows()), old_answers)
""",
        f'file.write_text({OTHER_CELL!r} + "# another size")',
        """
assert torch.equal(own_answers(net), new_answers)
assert torch.equal(snn.trace(rows()), new_answers)
assert torch.equal(assert_stepped(Net()), new_answers)
""",
    )


def test_a_class_of_an_ipython_terminal_and_of_main_is_stepped(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""{CELL}
{SHARED}
import os
from IPython.core.interactiveshell import InteractiveShell

if __name__ == "__main__":
    answers = assert_stepped(Net())
    os.chdir("/")  # where it lies is not where it runs
    require(torch.equal(assert_stepped(Net()), answers), "elsewhere")
    shell = InteractiveShell.instance()
    for cell in ({CELL!r}, {OTHER_CELL!r}):
        require(shell.run_cell(cell).success, "the cell failed")
        net = shell.user_ns["Net"]()
        again = assert_stepped(net)
        require(torch.equal(again, answers) == (cell == {CELL!r}), "the other cell")
"""
    )
    run_python(str(script))


def test_an_optimised_run_finds_its_source(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""'''The module alone: with all of torch it would take long.'''
import importlib.util
import sys

def function(x):
    '''Python leaves this out, and the assertion.'''
    assert x
    return x

spec = importlib.util.spec_from_file_location("running_source", {running_source.__code__.co_filename!r})
module = sys.modules["running_source"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if function.__doc__ is not None or module.running_source(function).lineno != 5:
    raise SystemExit("not found")
"""
    )
    run_python("-OO", str(script))


def test_a_class_of_a_command_line_is_stepped_or_refused_with_the_reason():
    run_python(
        "-c",
        f"""{CELL}
{SHARED}
import inspect
try:
    inspect.getsource(Net.forward)  # Python 3.13 keeps it
except OSError:
    assert "cannot be read" in refusal(Net()), refusal(Net())
else:
    assert_stepped(Net())
""",
    )


# -- exec -----------------------------------------------------------------------------------------------------------


def test_executed_text_is_stepped_if_it_can_be_found(cell_file):
    assert "source cannot be read" in refusal(executed(CELL)["Net"]())
    old = executed(CELL, cell_file(CELL))["Net"]()
    answers = assert_stepped(old)
    cell_file(OTHER_CELL)
    assert "not what is running" in refusal(old)
    assert "not what is running" in refusal(type(old)())
    new = executed(OTHER_CELL, cell_file(OTHER_CELL))["Net"]()
    assert not torch.equal(assert_stepped(new), answers)
    assert "not what is running" in refusal(old)
    cell_file(CELL)
    assert torch.equal(assert_stepped(old), answers)
    assert "not what is running" in refusal(new)


def test_text_that_does_not_compile_any_more_is_no_source(cell_file):
    net = executed(CELL, cell_file(CELL))["Net"]()
    assert_stepped(net)
    cell_file(CELL + "\n)(")
    assert "cannot be read" in refusal(net)
    cell_file(CELL + "\nreturn 1\n")  # it is parsed, and not compiled
    assert "not what is running" in refusal(net)


def test_statements_that_were_compiled_one_by_one_are_stepped(cell_file):
    file = cell_file(CELL + "\nreturn 1\n")  # the last one fails, as it may in a cell
    names: dict[str, Any] = {"__name__": "executed"}
    for statement in ast.parse(CELL).body:
        exec(compile(ast.Module([statement], []), file, "exec"), names)
    assert_stepped(names["Net"]())


def test_a_cell_that_was_compiled_as_a_whole_with_await_is_stepped(cell_file):
    text = CELL + "import asyncio\nawait asyncio.sleep(0)\n"
    code = compile(text, cell_file(text), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "executed"}
    asyncio.run(eval(code, names))
    assert_stepped(names["Net"]())


def test_the_same_class_elsewhere_in_its_file_is_what_is_running(cell_file):
    net = executed(CELL, cell_file(CELL))["Net"]()
    answers = assert_stepped(net)
    cell_file("# a line more\n" + CELL)
    assert torch.equal(assert_stepped(net), answers)
    twice = CELL + OTHER_CELL.replace("\nclass", "\n\n\n\nclass")
    cell_file(twice)
    assert torch.equal(assert_stepped(net), answers)
    names = executed(twice, cell_file(twice))
    assert not torch.equal(assert_stepped(names["Net"]()), answers)


# A function before it was edited, and after.
CHANGED = {
    "a number": ("x + 1", "x + 2"),
    "a number of another type": ("x + 1", "x + 1.0"),
    "a sign of zero": ("x * 0.0", "x * -0.0"),
    "a truth": ("x + 1", "x + True"),
    "a name": ("len(x)", "abs(x)"),
    "an attribute": ("x.real", "x.imag"),
    "a local name": ("y = x", "z = x"),
    "an operator": ("x + 1", "x - 1"),
    "an argument": ("def f(x):", "def f(x, y=1):"),
    "a kind of argument": ("def f(x, y):", "def f(x, *, y):"),
    "a keyword": ("f(x, a=1)", "f(x, b=1)"),
    "a nested function": ("return lambda: x + 1", "return lambda: x + 2"),
    "a set": ("x in {1, 2}", "x in {1, 3}"),
    "an empty line": ("y = (\n        x)", "y = (\n\n        x)"),
    "an indentation": ("if x:\n        x = 1\n    x = 2", "if x:\n        x = 1\n        x = 2"),
    "a try": ("try:\n        x()\n    except E:\n        pass", "try:\n        x()\n    except F:\n        pass"),
}


def test_the_lines_are_those_of_the_code_that_is_running(cell_file):
    """By them the time loop is found: where an empty line was written in front of it, it is still the same loop."""
    names = executed(IMPORTS)
    exec(compile(CLASS, cell_file(CLASS), "exec"), names)
    net = names["Net"]()
    answers = assert_stepped(net)
    cell_file(CLASS.replace("        for step", "\n\n        for step"))
    loop = next(s for s in running_source(type(net).forward).body if isinstance(s, ast.For))
    assert {statement.lineno for statement in loop.body} <= {line for _, _, line in net.forward.__code__.co_lines()}
    assert torch.equal(assert_stepped(net), answers)


@pytest.mark.parametrize("asserts", ["none", "kept", "rewritten"])
@pytest.mark.parametrize("change", CHANGED)
def test_any_change_of_a_function_shows(cell_file, change, asserts):
    before, after = CHANGED[change]
    texts = []
    for piece in (before, after):
        head, body = (piece, "pass") if piece.startswith("def") else ("def f(x):", piece)
        check = "" if asserts == "none" else "    assert x == [1, 2], 'no'\n"
        texts.append(f"{head}\n{check}    {body}\n{check}    return x\n")
    compiled = [_rewritten(text) if asserts == "rewritten" else executed(text, cell_file(text)) for text in texts]
    for one, names in enumerate(compiled):
        for other, text in enumerate(texts):
            names["f"].__code__ = names["f"].__code__.replace(co_filename=cell_file(text))
            if one == other:
                assert running_source(names["f"]).name == "f"
            else:
                with pytest.raises(OtherSource):
                    running_source(names["f"])


def _rewritten(text: str) -> dict[str, Any]:
    """As pytest loads a module of tests."""
    loader: Any = __loader__  # of this very file  # pyright: ignore[reportUndefinedVariable]
    tree = ast.parse(text)
    sys.modules[type(loader).__module__].rewrite_asserts(tree, text.encode(), config=loader.config)
    names: dict[str, Any] = {"__name__": "rewritten", "__loader__": loader}
    exec(compile(tree, "<rewritten>", "exec", dont_inherit=True), names)
    assert any(name.startswith("@py") for name in names["f"].__code__.co_varnames)
    return names


# -- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["", "        assert x.ndim == 2, 'rows of features'\n"], ids=["plain", "asserts"])
def test_a_reloaded_module_is_stepped_and_its_old_networks_are_refused(tmp_path, monkeypatch, check):
    name = f"reloaded_net_{'with' if check else 'without'}_asserts"
    text = CELL.replace("        rec = []\n", f"        rec = []\n{check}")
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module(name)
    old = module.Net()
    answers = assert_stepped(old)
    file.write_text(text.replace("self.fc1(x)", "self.fc1(1 - x)"))
    reason = refusal(old)
    assert "edited after it was loaded" in reason
    assert "make the model anew" in reason
    importlib.invalidate_caches()
    module = importlib.reload(module)
    assert "edited after it was loaded" in refusal(old)
    assert not torch.equal(assert_stepped(module.Net()), answers)
    assert torch.equal(own_answers(old), answers)  # it still runs what it was made of


class Asserts(nn.Module):
    """Of a file whose assertions pytest rewrites."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = STEPS
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(16, 24), snntorch.Leaky(beta=0.9, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(24, 4), snntorch.Leaky(beta=0.8, threshold=0.2)

    def forward(self, x):
        assert x.ndim == 2, "rows of features"
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            assert all(
                size > 0 for size in x.shape
            ), "rows"  # fmt: skip
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            with torch.no_grad():
                if len(rec) > 2:
                    assert not spk1.isnan().any()
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
            assert len(rec)
        assert len(rec) <= self.num_steps or isinstance(rec, list)
        return torch.stack(rec).sum(0)


def test_assertions_that_pytest_rewrote_are_no_change():
    names = Asserts.forward.__code__.co_varnames
    assert any(name.startswith("@py_assert") for name in names)
    assert_stepped(Asserts())


def test_a_forward_of_the_same_file_around_the_wrapper_is_not_the_networks():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 4), snntorch.Leaky(beta=0.9, threshold=0.3)

        def forward(self, x):
            mem = self.lif.init_leaky()
            rec = []
            for _ in range(STEPS):
                spk, mem = self.lif(self.fc(x), mem)
                rec.append(spk)
            return torch.stack(rec).sum(0)

    class Application(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.snn = EarlyExitWrapper(self.net, FixedPolicy(STEPS))

        def forward(self, x):
            return self.snn(x)

    application = Application().eval()
    with torch.no_grad():
        own = application.net(rows())
    assert len(torch.unique(own, dim=0)) > 1
    assert torch.equal(application(rows()), own)


def test_wrappers_of_any_framework_can_be_copied_and_pickled_after_use():
    from spikingjelly.activation_based import layer, neuron

    torch.manual_seed(1)
    model = nn.Sequential(layer.Linear(16, 24), neuron.LIFNode(v_threshold=0.2), layer.Linear(24, 4)).eval()
    snn = EarlyExitWrapper(model, "confidence", timesteps=STEPS)
    wanted = snn.trace(rows())
    assert len(torch.unique(wanted[-1], dim=0)) > 1
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(other.trace(rows()), wanted)


def test_a_forward_without_a_definition_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(16, 4), snntorch.Leaky(beta=0.9)

        def run(self, x):
            mem = self.lif.init_leaky()
            for _ in range(STEPS):
                spk, mem = self.lif(self.fc(x), mem)
            return spk  # pyright: ignore[reportPossiblyUnboundVariable]

        forward = lambda self, x: self.run(x)  # noqa: E731

    with pytest.raises(ModelRefused, match="no plain function"):
        EarlyExitWrapper(Net().eval(), "fixed", timesteps=STEPS).infer(rows())
