"""Errors that afterflow raises on purpose: one class to catch, and the kinds below it."""


class AfterflowError(Exception):
    """Base class of every error that afterflow raises on purpose; its message says what to change."""


class ConfigError(AfterflowError, ValueError):
    """A configuration, an option or a name that cannot be used."""


class InputError(AfterflowError, ValueError):
    """A file, a folder or data from outside that cannot be used."""


class OutputError(AfterflowError, OSError):
    """A file or a folder that cannot be written."""


class MissingDependencyError(AfterflowError, ValueError):
    """A library that this use needs is not installed."""


class CheckpointError(AfterflowError, ValueError):
    """A checkpoint that is damaged, or that belongs to another run."""


class TrainingStopped(AfterflowError, RuntimeError):
    """Training cannot go on; the message says at which step and why, and what was saved."""
