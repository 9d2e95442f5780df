#!/usr/bin/env python3
"""Kills runs while they save checkpoints, thousands of times: what is left is always good, and goes on to the same bytes.

    dev/test/soak_kill.py [--kills N] [--seed N]

A longer form of a test in end_to_end/resume.py, whose program and device it uses. Ends with one line.
"""

import argparse
import os
import random
import sys
import tempfile

from end_to_end import harness, resume


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    arguments = parser.parse_args()

    def progress(killed):
        if killed % 100 == 0:
            print(f"{killed} kills", flush=True)

    with tempfile.TemporaryDirectory(prefix="soak_kill.") as directory:
        os.chdir(directory)
        try:
            resume.check_kills(arguments.kills, arguments.seed, progress)
        except harness.Failure as failure:
            print(f"FAIL with --seed {arguments.seed}: {failure}")
            return 1
        finally:
            os.chdir(harness.ROOT)
    print(f"{arguments.kills} kills, always a good checkpoint (--seed {arguments.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
