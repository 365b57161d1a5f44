"""`python -m pipeinfer`."""

from pipeinfer.cli import main

main()
