"""The `cutlayer` command: parse, call, print. Errors are one sentence on standard error and exit code 2.

Modules here import torch only inside the commands that need it, so that `--help` and `keys` answer at once.
"""

import sys
import traceback

from cutlayer.errors import CutlayerError


def main() -> None:
    """Run the command line. `--debug`, anywhere, adds the traceback to an error's sentence."""
    from cutlayer.cli.app import app

    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="cutlayer")
    except CutlayerError as error:
        if debug:
            traceback.print_exc()
        print(f"cutlayer: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        print(
            f"cutlayer: a fault of cutlayer's own ({type(error).__name__}: {error}); run it again with --debug and "
            "report what it prints",
            file=sys.stderr,
        )
        sys.exit(1)
