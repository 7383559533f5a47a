"""``python -m volferry``."""

from volferry.cli import main

main()
