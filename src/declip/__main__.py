"""`python -m declip` is the command `declip`."""

from declip.cli.main import main

if __name__ == "__main__":  # worker processes import this module once more
    main()
