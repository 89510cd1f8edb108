"""Errors that the user can mend, told apart from bugs."""

import os
import signal
import sys


class InputError(Exception):
    """Something in the data, the configuration or the command line that the user can mend.

    Each message is one line: the file or name, what was found, what was expected, what to do. Several offenders are
    reported together: pass one message for each.
    """

    def __init__(self, *messages):
        super().__init__("\n".join(messages))
        self.messages = messages


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a script as Ctrl-C does, with what it had begun cleared away."""


def run_script(main):
    """Run ``main(argv)`` as the body of a script and exit with its status.

    0 (or None) is success, 2 an `InputError`, whose lines go to stderr without a traceback, or what the operating
    system refuses (a full disk, a folder that may not be written, memory), 130 an interrupt, 143 SIGTERM. Anything else
    is a bug and keeps its traceback.
    """
    _in_utf8_mode()
    for stream in (sys.stdout, sys.stderr):  # names of any bytes can be printed on any terminal
        stream.reconfigure(errors="backslashreplace")
    script = os.path.basename(sys.argv[0])
    came = []  # the exceptions of signals: while TensorFlow compiles, its C++ code makes errors of its own of them

    def stop(number, frame):
        came.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise came[-1]

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in a shell's background
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
        print(f"{script}: error: out of memory ({error}); lower WORKERS, or make room", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Exception) as error:
        if not came and not isinstance(error, KeyboardInterrupt):
            raise
        terminated = isinstance(came[-1] if came else error, Terminated)
        print(f"{script}: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


def _in_utf8_mode():
    """Start Python again in its UTF-8 mode where the locale keeps it from opening files of any Unicode name."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def what_failed(error):
    """One line for an `OSError`: the file, where it is known, and the system's reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
