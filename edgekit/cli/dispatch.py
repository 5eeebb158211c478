"""Calls one command and turns what it raises into one clear line and an exit status."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from edgekit.cli import COMMANDS
from edgekit.errors import EdgekitError, unknown

INTERRUPTED = 130


def dispatch(command: str, words: Sequence[str]) -> int:
    """The exit status of *command*. With ``--debug`` errors come as tracebacks."""
    debug = "--debug" in words
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        module = import_module(f"edgekit.cli.{command}")
        parser = argparse.ArgumentParser(
            prog=f"edgekit {command}",
            description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        status: int = module.run(parser.parse_args(words))
        sys.stdout.flush()
        return status
    except EdgekitError as error:
        if debug:
            raise
        _tell(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        if debug:
            raise
        _tell("interrupted; the same command goes on where it stopped")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        cure = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        where = f"{error.filename}: " if error.filename else ""
        _tell(f"{where}{error.strerror or error}{cure}")
        return 1


def _tell(text: str) -> None:
    print(f"edgekit: {text}", file=sys.stderr)
