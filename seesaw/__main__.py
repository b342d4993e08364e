"""`python -m seesaw` is the command `seesaw`."""

from seesaw.cli import main

main()
