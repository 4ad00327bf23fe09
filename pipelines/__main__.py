"""The entry point of penult: set up Ctrl-C and SIGTERM first, then import the command line, which takes a while."""

import gc

from pipelines import signals

YOUNG = 10_000  # new objects between two looks for garbage; with Python's 700, they take a tenth of a long listing


def main() -> None:
    """Run the command ``penult``."""
    signals.heed()
    gc.disable()  # what modules make is never garbage, and looking through it takes a tenth of a start
    from pipelines.commands import main as run

    gc.freeze()
    gc.set_threshold(YOUNG)
    gc.enable()
    run()


if __name__ == "__main__":
    main()
