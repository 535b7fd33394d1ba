"""Reasons why a run ends before its last step. Launchers turn them into exit codes."""


class CheckpointError(Exception):
    """A checkpoint of another stage, other settings or other shapes, or one that cannot be written."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


class NumericsError(Exception):
    """Too many consecutive non-finite updates, none of which was applied; or least squares without a solution."""


class Preempted(Exception):
    """The run was told to stop; its state is saved and the same command resumes it."""
