"""``python -m distsgd`` is the command ``distsgd``."""

from distsgd.commands.cli import main

main()
