#!/usr/bin/env python3
"""Checks the include graph: the wings of llmc in one direction, no circle, and paths written from llmc/ on.

    dev/lint/includes.py             prints each include that breaks a rule; exit code 1 if there is one
    dev/lint/includes.py --graph     prints which wing includes which, and how often

The order is that of llmc/README.md: base, parallel, device, model, then checkpoint and run beside each other, training. The
two devices, device/cpu and device/cuda, stand beside each other on device. A file and its header (x.c, x.h) are one place:
there is no way from it back to it, inside a wing either.
"""

import os
import re
import sys
from collections import Counter

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
LIBRARY = os.path.join(ROOT, "llmc")
# A wing includes itself and the wings with lower numbers.
ORDER = {"base": 0, "parallel": 1, "device": 2, "device/cpu": 3, "device/cuda": 3, "model": 4, "checkpoint": 5, "run": 5,
         "training": 6}
# Only what implements a device, and the benches that measure one, include its files.
DEVICES = ("device/cpu", "device/cuda")
SOURCES = (".c", ".h", ".cu", ".cuh", ".cpp")
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def wing_of(path):
    return os.path.dirname(path)


def find_sources():
    for directory, _, names in os.walk(LIBRARY):
        for name in sorted(names):
            if name.endswith(SOURCES):
                yield os.path.relpath(os.path.join(directory, name), LIBRARY)


def read_includes(path):
    """(line, what it includes) of a file of llmc, without the headers of the system."""
    with open(os.path.join(LIBRARY, path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            match = INCLUDE.match(line)
            if match:
                yield number, match[1]


def fault_of(path, included):
    """What is wrong with one include, or None."""
    if not os.path.isfile(os.path.join(LIBRARY, included)):
        return "is not a path from llmc/ on"
    wing, other = wing_of(path), wing_of(included)
    for name in (wing, other):
        if name not in ORDER:
            return f"{name or 'llmc itself'} is no wing that this script knows"
    if other != wing and ORDER[other] >= ORDER[wing]:
        return f"goes from {wing} to {other}, against the order"
    if other != wing and other in DEVICES:
        return f"goes into {other}, which only device.h leads to"
    return None


def find_circle(edges):
    """The places of one circle of the graph, the first again at the end, or None."""
    done, way = set(), []

    def visit(place):
        if place in way:
            return [*way[way.index(place):], place]
        if place in done:
            return None
        way.append(place)
        for other in sorted(edges.get(place, ())):
            circle = visit(other)
            if circle:
                return circle
        way.pop()
        done.add(place)
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def main():
    faults, edges, wings = [], {}, Counter()
    for path in find_sources():
        place = os.path.splitext(path)[0]
        for line, included in read_includes(path):
            fault = fault_of(path, included)
            if fault:
                faults.append(f"llmc/{path}:{line}: \"{included}\" {fault}")
            other = os.path.splitext(included)[0]
            if other != place:
                edges.setdefault(place, set()).add(other)
            wings[wing_of(path), wing_of(included)] += 1
    if "--graph" in sys.argv[1:]:
        for (wing, other), count in sorted(wings.items(), key=lambda item: [ORDER.get(name, -1) for name in item[0]]):
            print(f"{wing} → {other}: {count}")
    circle = find_circle(edges)
    if circle:
        faults.append("a circle of includes: " + " → ".join(circle))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
