"""The two ways a command fails, and the exit codes they become (0 is success)."""


class DrwrError(Exception):
    """A failure with one clear line for the user: it names the file or key, the reason and the fix."""

    exit_code = 1


class UsageError(DrwrError):
    """A command line or configuration that can't be meant: found before any work starts."""

    exit_code = 2


class DataError(DrwrError):
    """Input data that can't be used: a damaged shard, a missing file, an array of the wrong shape."""


class TrainingError(DrwrError):
    """Training that can't go on: a loss that is not finite, too many skipped samples, storage that is full."""


class ClusterError(DrwrError):
    """A cluster that can't be used: not running, not reachable, or it refuses our token."""
