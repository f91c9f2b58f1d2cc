"""Share of the lines of amdim_fast/ and kernels/ that the tests reach, as rows.

    make coverage

Reads coverage's combined data of a run of the tests, subprocesses included; Triton's interpreter
runs the kernels from their own lines, so these count too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import harness

NAME = "coverage"
FOLDERS = ("amdim_fast", "kernels")
SHOWN = 5


def covered(report: Mapping[str, Any]) -> dict[str, float]:
    """Percent of the statements of each folder that ran, from coverage's JSON report.

    Raises:
        ValueError: the report has no file of a folder.
    """
    shares = {}
    for folder in FOLDERS:
        summaries = [
            file["summary"] for name, file in report["files"].items() if _folder(name) == folder
        ]
        if not summaries:
            raise ValueError(f"the report has no file of {folder}/; run the tests under coverage")
        statements = sum(summary["num_statements"] for summary in summaries)
        shares[folder] = 100 * sum(summary["covered_lines"] for summary in summaries) / statements
    return shares


def _folder(name: str) -> str:
    """Its folder; kernels may have been measured through a link in the package."""
    parts = Path(name).parts
    return next((part for part in reversed(parts[:-1]) if part in FOLDERS), "")


def main(arguments: list[str] | None = None) -> int:
    """Append one row a folder and print the files with the most lines that no test reaches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-file", default=".coverage", help="combined data of coverage")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / f"{NAME}.jsonl")
    parser.add_argument("--note", default="", help="what was not run, recorded with the rows")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(path)]
        subprocess.run([*command, f"--data-file={options.data_file}"], check=True)
        report = json.loads(path.read_text())
    for provider, share in covered(report).items():
        condition = harness.Condition(NAME, "lines", provider, "tests", {}, "")
        device = harness.device_name("cpu")
        row = harness.make_row(
            condition, "lines_reached", "%", [share], device=device, note=options.note
        )
        harness.append_row(row, options.out)
        print(f"  {provider}/: {share:.1f} % of the lines")
    missing = {name: file["summary"]["missing_lines"] for name, file in report["files"].items()}
    for name in sorted(missing, key=lambda name: -missing[name])[:SHOWN]:
        print(f"  {missing[name]} lines not reached in {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
