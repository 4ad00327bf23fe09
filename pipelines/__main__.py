"""The entry point of penult: set up Ctrl-C and SIGTERM first, then import the command line, which takes a while."""

import gc

from pipelines import signals


def main() -> None:
    """Run the command ``penult``."""
    signals.heed()
    gc.disable()  # what modules make is never garbage, and looking through it takes a tenth of a start
    from pipelines.commands import main as run

    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
