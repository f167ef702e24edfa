"""`python -m storyllamas` is `storyllamas`."""

from storyllamas.cli import main

main()
