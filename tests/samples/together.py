"""Runs commands of a README in one process, which loads torch once: arguments are the commands."""

import runpy
import shlex
import sys

from qcompile.cli.main import main


def run(line: str) -> None:
    """Run ``python FILE ...`` or ``qcompile ...`` as a shell would; end with its exit code."""
    program, *sys.argv = shlex.split(line)
    if program == "python":
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    sys.argv.insert(0, program)
    try:
        main()
    except SystemExit as done:
        if done.code:
            raise


if __name__ == "__main__":
    for command in sys.argv[1:]:
        run(command)
