"""How the command ends: exit codes, and one sentence for every error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from nettrim.errors import NettrimError

CHECK_FAILED, BAD_INPUT, UNFINISHED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

# typer brings its own click from 0.20-something on; both name the base of their complaints alike
_Complaint: type[BaseException] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Terminated(BaseException):
    """SIGTERM came."""


class Group(TyperGroup):
    """The verbs; whatever goes wrong below ends here, as one sentence on standard error."""

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run a verb and leave with its exit code; `--debug` lets exceptions through with their traceback."""
        code = self._run(*args, **options)
        if standalone_mode:
            sys.exit(code)
        return code

    def _run(self, *args: Any, **options: Any) -> int:
        words = options.get("args", args[0] if args else None)
        words = sys.argv[1:] if words is None else words
        debug = "--debug" in words
        # given before the verb or after it, as people do
        options["args"], args = [*(["--debug"] if debug else []), *(w for w in words if w != "--debug")], ()
        try:
            with _one_reason():
                code = super().main(standalone_mode=False, **options)
            if code == INTERRUPTED:  # what newer versions of Typer make of Ctrl-C
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
        except NettrimError as error:
            return _say(str(error), debug)
        except _Complaint as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, where that is not shown yet
                _print(str(getattr(error, "message", "")))
                return BAD_INPUT
            return _complain(error)
        except (KeyboardInterrupt, typer.Abort):
            _print(f"Interrupted.{_kept(words)}")
            return INTERRUPTED
        except _Terminated:
            _print(f"Ended by SIGTERM.{_kept(words)}")
            return TERMINATED
        except BrokenPipeError:  # the reader of standard output, `head` for one, has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CHECK_FAILED
        except MemoryError:
            return _say("The memory of this machine is not enough for this.", debug)
        except Exception as error:
            cure = "Run it again with --debug and report what it shows."
            return _say(f"Something unforeseen happened ({type(error).__name__}: {error}). {cure}", debug)


@contextmanager
def _one_reason() -> Iterator[None]:
    """After Ctrl-C or SIGTERM that alone, whatever else goes wrong while workers, clusters and files are being closed.

    Libraries may end the process in ways of their own then, Ray with exit code 1 where its signal handlers are called.
    SIGTERM, by which schedulers and containers end a job, would leave temporary files if it ended the process at once.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def press(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[signal.SIGINT](number, frame)  # type: ignore[operator]

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_IGN)  # who asks again must not stop what is being closed
        raise SystemExit(TERMINATED)

    main = threading.current_thread() is threading.main_thread()
    if main and callable(before[signal.SIGINT]):  # else it is ignored, or somebody else's
        signal.signal(signal.SIGINT, press)
    if main and before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            came.append(signal.SIGTERM)  # Ray has set a handler that leaves so
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else _Terminated from error
        raise
    finally:
        for number, handler in before.items():
            if main and handler is not None:
                signal.signal(number, handler)


def _kept(words: Sequence[str]) -> str:
    """What is left of the work."""
    kept = any(word.split("=")[0] in ("--checkpoint", "--resume") for word in words)
    return " Finished work is kept: the same command goes on from there." if kept else ""


def _say(sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _print(f"nettrim: {' '.join(sentence.split())}")
    return BAD_INPUT


def _complain(error: Any) -> int:
    """What is wrong with the words on the command line, and where to read how they should be."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", None) or "nettrim"
    _print(f"nettrim: {' '.join(error.format_message().split())} Try: {path} --help")
    return BAD_INPUT


def _print(text: str) -> None:
    print(text, file=sys.stderr)
