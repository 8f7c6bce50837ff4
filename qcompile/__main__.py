"""``python -m qcompile``: the command line without its console script."""

from qcompile.cli.main import main

main()
