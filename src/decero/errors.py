"""The one error that is meant for people, and the doorway that shows it as one line."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

ENVIRONMENT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT, errno.ESTALE)
CLEANUPS: list[Callable[[], None]] = []  # what to undo when a command ends on a UserError


class UserError(Exception):
    """What is wrong, where, the nearest valid name and the mend, in one line. A command ends on it with exit code 2.

    A line that quotes too much (a column's name of a megabyte) loses its middle: the mend stands at its end.
    """

    def __init__(self, message: str):
        super().__init__(message if len(message) <= 1000 else f"{message[:700]} ... {message[-280:]}")


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """`"; did you mean optim.learning_rate?"`, or nothing when no valid name is near."""
    near = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def root_line(error: BaseException) -> str:
    """The first line of what an error of a library says, of its cause where it has one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def run_script(main: Callable[[], None]) -> None:
    """Run a command: a `UserError` becomes one line on standard error and exit code 2, Ctrl-C exit code 130.

    So does what a disk that is full, read-only, broken or gone makes of any file.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # what nobody reads is noticed here, not while the interpreter goes
    except UserError as error:
        while CLEANUPS:
            CLEANUPS.pop()()
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all of a machine meet the same error; one of them says it
            _say(f"error: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... --help | head`: who read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        while CLEANUPS:
            CLEANUPS.pop()()
        where = f"{error.filename}: " if error.filename else ""
        mend = "mend that, then start the same command again (a run with --resume)"
        _say(f"error: {where}{error.strerror}; {mend}")
        sys.exit(2)
    except RuntimeError as error:
        if not _lost_the_others(error):
            raise
        said = " ".join(str(error).split())[:200]
        rank, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "several")
        mend = "what was saved is intact; start the same command again with --resume"
        _say(f"error: process {rank} of {size} lost the others ({said}); {mend}")
        os._exit(2)  # leaving in good order would wait for those that do not answer


def _say(line: str) -> None:
    """In one write: `print` makes two where output is not buffered (launchers), and others write in between."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _lost_the_others(error: RuntimeError) -> bool:
    """Whether a process ended or was silent for too long, as gloo and NCCL put it."""
    signs = ("timed out", "timeout", "connection closed", "connection reset", "connection refused", "broken pipe")
    return "RANK" in os.environ and any(sign in str(error).lower() for sign in signs)
