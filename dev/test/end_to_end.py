#!/usr/bin/env python3
"""End-to-end tests: the program as its users start it, from shards to checkpoints, and the scripts that prepare data.

    dev/test/end_to_end.py [WORD…]     only the tests whose names hold one of the words

Runs ./train_lighthouse on the CPU, or on the device that the environment variable TEST_DEVICE names. The tests are in the
folder end_to_end, a file a subject. Ends with the line "N passed, N failed".
"""

import importlib
import sys

from end_to_end import harness

# In this order they run.
SUBJECTS = ("training", "resume", "selection", "schedule", "parallel", "stop", "guard", "launch", "checkpoint", "disk",
            "memory", "command_line", "data", "ablation", "evaluate", "curves")


def main():
    words = sys.argv[1:]
    for subject in SUBJECTS:
        importlib.import_module(f"end_to_end.{subject}")
    print("--- end to end", flush=True)
    results = [harness.run_test(function) for function in harness.tests
               if not words or any(word in function.__name__ for word in words)]
    for word in words:
        if not any(word in function.__name__ for function in harness.tests):
            print(f"FAIL no test has a name with \"{word}\"")
            results.append(False)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
