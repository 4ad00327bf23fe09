"""Start penult: heed Ctrl-C and SIGTERM first, then import the command line, which takes a while."""

from pipelines import signals


def main() -> None:
    """Entry point of the command ``penult``."""
    signals.heed()
    from pipelines.commands import main as run

    run()


if __name__ == "__main__":
    main()
