"""Errors that the user can fix, told apart from bugs."""

import os
import signal
import sys


class InputError(Exception):
    """A fault in the data, the configuration or the command line that the user can fix.

    Each message is one line: the file or name, what was found, what was expected, what to do. To report several faults
    together, pass one message for each.
    """

    def __init__(self, *messages):
        super().__init__("\n".join(messages))
        self.messages = messages


class Terminated(KeyboardInterrupt):
    """SIGTERM. It ends a script as Ctrl-C does: unfinished files are removed."""


def run_script(main):
    """Run ``main(argv)`` as the body of a script and exit with its status.

    | status | cause |
    |---|---|
    | 0 | success (`main` returned 0 or None) |
    | 2 | an `InputError`, or a refusal of the operating system: a full disk, a read-only folder, no memory |
    | 130 | Ctrl-C |
    | 143 | SIGTERM |

    With status 2, stderr has one line for each message and no traceback. Any other exception is a bug and keeps its
    traceback.
    """
    _in_utf8_mode()
    for stream in (sys.stdout, sys.stderr):  # names of any bytes can be printed on any terminal
        stream.reconfigure(errors="backslashreplace")
    script = os.path.basename(sys.argv[0])
    came = []  # exceptions that signals raised: TensorFlow's C++ code turns them into its own while it compiles

    def stop(number, frame):
        came.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise came[-1]

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells ignore it for background jobs
        signal.signal(signal.SIGINT, stop)
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        for message in error.messages:
            print(f"{script}: error: {' '.join(message.splitlines())}", file=sys.stderr)  # names may hold line breaks
        sys.exit(2)
    except OSError as error:
        print(f"{script}: error: {what_failed(error)}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"{script}: error: out of memory ({error}); lower WORKERS, or close other programs", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Exception) as error:
        if not came and not isinstance(error, KeyboardInterrupt):
            raise
        terminated = isinstance(came[-1] if came else error, Terminated)
        print(f"{script}: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


def _in_utf8_mode():
    """Restart Python in its UTF-8 mode if the locale keeps it from opening files with some Unicode names."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def what_failed(error):
    """One line for an `OSError`: the file, if known, and the system's reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
