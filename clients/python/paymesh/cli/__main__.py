"""`python -m paymesh.cli` is the same as `paymesh`."""

from paymesh.cli import main

main()
