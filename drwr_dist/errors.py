"""The two ways a command fails, and the exit codes they become (0 is success)."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


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


# What a disk, a file system or its owner refuses.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


def is_refusal(error: OSError) -> bool:
    """Say whether an error is of the machine's making: a full disk, say; of others, we want to see the traceback."""
    return error.errno in _REFUSALS


@contextmanager
def refusals_of(place: str) -> Iterator[None]:
    """Raise TrainingError, which names a folder or URL, where a file of it is refused."""
    try:
        yield
    except OSError as error:
        if not is_refusal(error):
            raise
        raise TrainingError(f"{place}: {error}; mend that and run the same command again") from error
