"""Keeps the chatter of converters off the user's terminal."""

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from edgekit.errors import EdgekitError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside it third-party warnings, logs, prints and C++ output on stderr are held back.

    When the body raises, what C++ code wrote to stderr is let through: it may hold the cause. Errors of
    edgekit's own say all themselves.
    """
    saved_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            _captured_fd(2),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(saved_level)


@contextlib.contextmanager
def _captured_fd(fd: int) -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(fd)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), fd)
        try:
            yield
        except EdgekitError:
            raise
        except Exception:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, fd)
            os.close(saved)
