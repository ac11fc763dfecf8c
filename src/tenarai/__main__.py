"""`tenarai`, and `python -m tenarai`."""

import sys


def main() -> int:
    """Run the process's command line; → the exit status."""
    try:
        from tenarai import cli
    except KeyboardInterrupt:  # before cli.main is there to take it
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
