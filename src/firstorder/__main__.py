"""`python -m firstorder`: the command line, for a Python whose scripts are not on the PATH."""

from firstorder.cli.entry import main

if __name__ == "__main__":
    main()
