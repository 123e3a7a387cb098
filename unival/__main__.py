"""Run the command line as ``python -m unival``."""

from unival.cli import main

if __name__ == "__main__":
    main()
