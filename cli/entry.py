"""Where the console script begins: an interruption has its answer before anything else is imported."""

import signal
import sys


def main() -> None:
    """Import the command line and run it; Ctrl-C at any moment from here on is one line and exit code 130."""
    try:
        from .main import main as start
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("firstorder: interrupted", file=sys.stderr)
        sys.exit(130)
    start()


if __name__ == "__main__":
    main()
