"""Why a run ends before its last step. Launchers turn these into exit codes."""


class CheckpointError(Exception):
    """A checkpoint that must not be used here: another stage, other settings, other shapes; or one
    that cannot be written.
    """


class CorruptCheckpoint(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


class NumericsError(Exception):
    """Too many non-finite updates in a row. None of them was applied."""


class Preempted(Exception):
    """The run was asked to stop; its state is saved and the same command goes on."""
