"""How a model is stepped, in a page that a person can read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Explanation:
    """What :meth:`EarlyExitWrapper.explain` found.

    Attributes:
        model: class of the model.
        adapter: the adapter that steps it.
        facts: what was found, in order: input, step mode, state, readout, policy, ...
        checks: one line for each check made.
        refused: why the model is refused, with the remedy; ``None`` if it runs.
    """

    model: str
    adapter: str
    facts: dict[str, str] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    refused: str | None = None

    def __str__(self) -> str:
        width = max(map(len, [*self.facts, "adapter", "checks"])) + 2
        lines = [f"{self.model}: {'REFUSED' if self.refused else 'exits early, row by row'}"]
        if self.refused:
            lines.append(f"  {'because':<{width}}{self.refused}")
        lines.append(f"  {'adapter':<{width}}{self.adapter}")
        lines += [f"  {name:<{width}}{fact}" for name, fact in self.facts.items()]
        for i, check in enumerate(self.checks):
            lines.append(f"  {'checks' if i == 0 else '':<{width}}{check}")
        return "\n".join(lines)
