"""Two threads on one model: right, or refused; never each other's rows."""

import threading

import pytest
import snntorch
import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.policies import FixedPolicy


class Meeting(nn.Module):
    """Lets a test stop the model in the middle of a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.wait_in: list[int] = []  # not a number, whose change would make the model be inspected again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if threading.get_ident() in self.wait_in:
            self.inside.set()
            assert self.go_on.wait(10)
        return x


def test_a_second_thread_is_refused_while_a_first_is_in_the_middle_of_a_timestep():
    meeting = Meeting()
    model = nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(0.9, init_hidden=True), meeting, nn.Linear(8, 4)).eval()
    first, second = (EarlyExitWrapper(model, FixedPolicy(4), timesteps=4) for _ in range(2))
    x, answers = torch.rand(5, 6), []
    with torch.no_grad():
        expected = first(x)
        torch.testing.assert_close(second(x), expected)
    keys = [list(vars(module)) for module in model.modules()]

    def run() -> None:
        meeting.wait_in.append(threading.get_ident())
        with torch.no_grad():
            answers.append(first(x))

    thread = threading.Thread(target=run)
    thread.start()
    assert meeting.inside.wait(10)
    try:
        with torch.no_grad(), pytest.raises(RuntimeError, match="another thread"):
            second(x)
    finally:
        meeting.go_on.set()
        thread.join()
    with torch.no_grad():
        torch.testing.assert_close(second(x), expected)
    torch.testing.assert_close(answers[0], expected)
    assert [list(vars(module)) for module in model.modules()] == keys
