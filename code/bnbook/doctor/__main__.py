"""``python -m bnbook.doctor FILE``: what is wrong with the norms in a checkpoint or an exported model.

Exits with 1 if there is an error among the findings, with 2 if the file could not be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bnbook.doctor._files import examine_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the files that are named."""
    parser = argparse.ArgumentParser(prog="python -m bnbook.doctor", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help=".onnx, .safetensors, .pt (a state dict)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--table", action="store_true", help="print a row for each norm as well")
    options = parser.parse_args(arguments)
    worst = 0
    for file in options.files:
        try:
            report = examine_file(file)
        except ValueError as error:
            print(error, file=sys.stderr)
            worst = 2
            continue
        print(report.to_json() if options.json else f"{file}: {report}")
        if options.table and not options.json:
            print(report.table())
        if any(finding.severity == "error" for finding in report.findings):
            worst = max(worst, 1)
    return worst


if __name__ == "__main__":
    sys.exit(main())
