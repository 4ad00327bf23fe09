"""The entry point of penult: set up Ctrl-C and SIGTERM first, then import the command line, which takes a while."""

from pipelines import signals


def main() -> None:
    """Run the command ``penult``."""
    signals.heed()
    from pipelines.commands import main as run

    run()


if __name__ == "__main__":
    main()
