"""The command line: composes a recipe with the sections of a backend and prints what was found."""
