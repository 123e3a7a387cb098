"""The commands of ``soups``, one file each; the file name is the name of the command.

A command file defines ``command``, a function with typer annotations. It imports torch, numpy and the rest
inside that function, so that ``--help`` answers at once.
"""
