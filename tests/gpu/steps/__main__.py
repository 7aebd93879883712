"""Run one step: ``python -m tests.gpu.steps MODULE --result FILE …``."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from tests.gpu.steps.context import Context, StepError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--argument", default="")
    parser.add_argument("--at-once", type=int, default=1)
    args = parser.parse_args()
    # The `with` blocks of a step end its servers when it is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    context = Context(args.name, args.device, args.work, args.result, args.argument, args.at_once)
    try:
        importlib.import_module(f"tests.gpu.steps.{args.module}").run(context)
    except StepError as error:
        context.write(error=str(error))
        return 1
    except Exception:
        traceback.print_exc()
        context.write(error=traceback.format_exc())
        return 1
    context.write()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a library do not hold up the next step
