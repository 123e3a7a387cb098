"""Run the command line as ``python -m soups``."""

from soups.cli import main

if __name__ == "__main__":
    main()
