"""The exceptions of this library. Each message says what was found, and what to do about it."""


class SeennError(Exception):
    """Base class of all exceptions that this library raises deliberately."""


class AdapterError(SeennError, LookupError):
    """No adapter fits the model, or several do; or the adapter does not support an option."""


class ModelRefused(SeennError, TypeError):
    """The model cannot be run one timestep at a time, row by row, with correct results.

    Attributes:
        reason: what was found in the model.
        remedy: what to do instead.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason} {remedy}")
        self.reason = reason
        self.remedy = remedy


class InputError(SeennError, ValueError):
    """The input, or an option of the wrapper, is invalid."""


class PolicyError(SeennError, ValueError):
    """An exit policy is unknown or misconfigured, or has returned an invalid decision or plan."""


class ReadoutError(SeennError, ValueError):
    """A readout is unknown, or cannot be applied to the model's outputs."""


class CalibrationError(SeennError, ValueError):
    """The held-out data cannot be used, or no setting of the policy meets the target."""


class TrainingError(SeennError, ArithmeticError):
    """Training has diverged."""


class OptionalDependencyError(SeennError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: the name of the package.
        extra: the extra of ``seenn-plugin`` that installs it.
        purpose: what it is needed for; the message begins with it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}: pip install "seenn-plugin[{extra}]"')
