"""``python -m plugalign``: the command line where the package is not installed."""

from plugalign.cli import main

if __name__ == "__main__":
    main()
