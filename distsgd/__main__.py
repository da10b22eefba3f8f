"""``python -m distsgd`` is the command ``distsgd``."""

from distsgd.cli import main

main()
