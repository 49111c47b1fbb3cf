"""`python -m cutlayer` is the `cutlayer` command."""

from cutlayer.cli import main

main()
