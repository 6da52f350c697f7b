"""What can go wrong, by name. Every message says what was seen and what to do about it."""


class SeennError(Exception):
    """Base class of all errors that this library raises on purpose."""


class AdapterError(SeennError, LookupError):
    """No adapter, or more than one, fits the model."""


class ModelRefused(SeennError, TypeError):
    """The model cannot be advanced one timestep at a time, row by row, with the right answer."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason} {remedy}")
        self.reason = reason
        self.remedy = remedy


class InputError(SeennError, ValueError):
    """The input, or an option given to the wrapper, does not fit."""


class PolicyError(SeennError, ValueError):
    """An exit policy is unknown, badly configured, or decided something that is not a decision."""


class ReadoutError(SeennError, ValueError):
    """A readout is unknown, or the model's output is not something that it can read."""


class CalibrationError(SeennError, ValueError):
    """The held-out data, or the target, does not allow a calibration."""


class TrainingError(SeennError, ArithmeticError):
    """A training has diverged."""


class OptionalDependencyError(SeennError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}: pip install "seenn-plugin[{extra}]"')
