#!/usr/bin/env python3
"""Checks sizes: no file of llmc over 400 lines, no function of llmc and the programs over 60, but for those named here.

Prints each that is over, and each exception that is none any more; exit code 1 if there is one. It takes the files as
clang-format leaves them: what begins at the margin, has parentheses and opens a brace is a function, up to the next brace
at the margin.
"""

import glob
import os
import re
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
SOURCES = (".c", ".h", ".cu", ".cuh", ".cpp")
# Path, or path and function, and why it is better so.
EXCEPTIONS = {
    "llmc/checkpoint/checkpoint.c": "to be split, one file a format",
    "llmc/checkpoint/saver.c": "to be split, one file a format",
    "llmc/device/cpu/ops_lighthouse.c": "to be split",
    "llmc/device/cuda/lighthouse.cuh": "to be split",
    "llmc/device/cuda/cross_entropy.cuh cross_entropy_kernel": "one pass, whose parts share registers and shared memory",
    "llmc/device/cuda/rmsnorm.cuh rmsnorm_backward_kernel": "one pass, whose parts share registers and shared memory",
}
NAME = re.compile(r"(\w+)\(")


def find_functions(lines):
    """(name, first line from 1, count of lines) of each function."""
    start, text = 0, ""
    for number, line in enumerate(lines, 1):
        if not start and (not line or line[0] in " \t#/}" or line.startswith(("extern \"C\"", "namespace"))):
            continue
        if not start:
            start, text = number, ""
        text += line.rstrip()
        if line.startswith("}") or ("{" not in text and text.endswith(";")):
            signature = text.partition("{")[0]
            names = [name for name in NAME.findall(signature) if not name.startswith("__")]
            if "{" in text and names and not signature.rstrip().endswith("="):
                yield names[0], start, number - start + 1
            start = 0


def main():
    over = {}
    for path in sorted(glob.glob(f"{ROOT}/llmc/**", recursive=True) + glob.glob(f"{ROOT}/*.cu")):
        if not path.endswith(SOURCES):
            continue
        name = os.path.relpath(path, ROOT)
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        if len(lines) > MOST_FILE_LINES and name.startswith("llmc/"):
            over[name] = f"{name}: {len(lines)} lines, at most {MOST_FILE_LINES}"
        for function, first, count in find_functions(lines):
            if count > MOST_FUNCTION_LINES:
                over[f"{name} {function}"] = f"{name}:{first}: {function} has {count} lines, at most {MOST_FUNCTION_LINES}"
    faults = [text for key, text in over.items() if key not in EXCEPTIONS]
    faults += [f"dev/lint/sizes.py: {key} is no exception any more" for key in EXCEPTIONS if key not in over]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
