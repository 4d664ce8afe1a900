"""Errors of the cache of `datasets`: they are about its folder, not about the corpus."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import datasets

from decero.errors import UserError, root_line

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE)
CLOSED = "closed file"  # what Arrow says when it closes a file that could not be written


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def writing_cache() -> Iterator[None]:
    """Turn the errors of writing the cache into a UserError; pass on a UserError that `datasets` wraps."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        causes = list(chain_of(error))
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from error
        for cause in causes:
            full = isinstance(cause, OSError) and (cause.errno in NO_ROOM or "disk space" in str(cause))
            if full or CLOSED in str(cause):
                said = cause.strerror if isinstance(cause, OSError) and cause.strerror else root_line(cause)
                raise UserError(
                    f"{datasets.config.HF_DATASETS_CACHE}: cannot write the cache of data sets: {said}; make room "
                    "there, or set HF_DATASETS_CACHE to another folder"
                ) from error
        raise
