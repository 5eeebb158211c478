"""Calls one command and turns what it raises into one clear line and an exit status."""

import argparse
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from edgekit import files
from edgekit.cli import COMMANDS
from edgekit.errors import EdgekitError, unknown

INTERRUPTED = 130


def dispatch(command: str, words: Sequence[str]) -> int:
    """The exit status of *command*. With ``--debug`` errors come as tracebacks."""
    debug = "--debug" in words
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    args = argparse.Namespace()
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
        args = parser.parse_args(words)
        args.typed = shlex.join(("edgekit", command, *words))
        _check_outputs(args)
        status: int = module.run(args)
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
        option = "" if getattr(args, "resume", True) else " with --resume"
        resumes = getattr(sys.modules.get(f"edgekit.cli.{command}"), "RESUMES", True)
        _tell(f"interrupted; the same command{option} goes on where it stopped" if resumes else "interrupted")
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


def _terminate(number: int, frame: object) -> None:
    """End as an exception does, so that temporary folders and the agent go too."""
    raise SystemExit(128 + number)


def _check_outputs(args: argparse.Namespace) -> None:
    """What cannot be written is told before the work and not after it."""
    if getattr(args, "json", None) not in (None, "-"):
        files.check_output(Path(args.json))
    if getattr(args, "html", None):
        files.check_output(args.html)
    if getattr(args, "out", None):
        files.check_output(args.out, folder=True)


def _tell(text: str) -> None:
    print(f"edgekit: {text}", file=sys.stderr)
