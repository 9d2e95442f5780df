#!/usr/bin/env python3
"""Makes token shards of the source of the Linux kernel, a corpus whose text depends on what stands far before it.

The source is Debian's package linux-source, taken from /usr/src if it is installed and downloaded otherwise; --archive
names another tar archive of a kernel. It is read as a stream, nothing is unpacked. A file is a document; the files of a
directory follow each other. Whole directories are held out for validation, chosen by their names alone. Register tables
made by machines (asic_reg), nearly a third of the source, are left out.
"""

import glob
import hashlib
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib

from shards import ArgumentParser, DataError, ShardSet, add_output_options, positive, run

ENDINGS = (".c", ".h", ".S", ".s", ".rs", ".rst", ".txt", ".py", ".pl", ".sh", ".lds", ".dts", ".dtsi", ".yaml",
           ".cocci", ".y", ".l")
NAMES = re.compile(r"(Kconfig|Makefile|Kbuild|README|MAINTAINERS|CREDITS|COPYING|TODO)(\..*)?")
LEFT_OUT = "asic_reg"
INSTALLED = ("/usr/src/linux-source-*.tar.*", "/usr/src/linux-source-*/linux-source-*.tar.*")


def find_archive(directory):
    """The newest kernel source that is installed or was downloaded before; else downloads it into `directory`."""
    found = [path for pattern in (*INSTALLED, os.path.join(directory, "linux-source-*.tar.*"))
             for path in glob.glob(pattern) if not path.endswith(".tmp")]
    if found:
        return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", os.path.basename(path))])
    return download(directory)


def download(directory):
    """Downloads the package that linux-source depends on and extracts the archive from it. Needs no privileges."""
    os.makedirs(directory, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        try:
            depends = subprocess.run(["apt-cache", "depends", "linux-source"], check=True, capture_output=True, text=True)
            package = re.search(r"Depends: (linux-source-\S+)", depends.stdout)[1]
            print(f"downloading {package}", flush=True)
            subprocess.run(["apt-get", "download", package], check=True, capture_output=True, cwd=scratch)
            contents = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", *glob.glob(scratch + "/*.deb")],
                                        stdout=subprocess.PIPE)
        except (OSError, subprocess.CalledProcessError, TypeError) as error:
            raise DataError("linux-source could not be downloaded; run `apt-get update && apt-get install linux-source`, "
                            "or give --archive a kernel's tar archive") from error
        with contents, tarfile.open(fileobj=contents.stdout, mode="r|") as package_files:
            for member in package_files:
                name = os.path.basename(member.name)
                if re.fullmatch(r"linux-source-.*\.tar\.\w+", name):
                    path = os.path.join(directory, name)
                    copy(package_files.extractfile(member), path)
    return path


def copy(source, path):
    with open(path + ".tmp", "wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
    os.replace(path + ".tmp", path)


def wanted(path, subset):
    directory, name = os.path.split(path)
    parts = directory.split("/")
    return ((not subset or parts[0] in subset) and LEFT_OUT not in parts
            and (name.endswith(ENDINGS) or NAMES.fullmatch(name)))


def read_texts(archive, subset):
    """Yields (path below the kernel's root, text) for every text file, in the archive's order."""
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                path = member.name.removeprefix("./").partition("/")[2]
                if member.isfile() and member.size > 0 and wanted(path, subset):
                    text = members.extractfile(member).read()
                    if b"\0" not in text:
                        yield path, text
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot read {archive}: {error}") from error


def by_directory(texts):
    """Yields (directory, texts of its own files). The archive is sorted, with subdirectories between the files of their
    parent; so the texts of a directory are collected until the archive has left it and all its subdirectories."""
    waiting = []  # (directory, its texts so far), the outermost directory first
    for path, text in texts:
        directory = os.path.dirname(path)
        while waiting and not is_inside(directory, waiting[-1][0]):
            yield waiting.pop()
        if not waiting or waiting[-1][0] != directory:
            waiting.append((directory, []))
        waiting[-1][1].append(text)
    yield from reversed(waiting)


def is_inside(directory, other):
    return other in ("", directory) or directory.startswith(other + "/")


def is_held_out(directory, fraction):
    digest = hashlib.blake2b(directory.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--archive", metavar="FILE", help="a kernel's tar archive (default: that of linux-source)")
    parser.add_argument("--subset", metavar="DIR,…", help="only these top-level directories, such as kernel,mm,fs")
    parser.add_argument("--limit-mb", metavar="N", type=positive, help="stop after N million bytes of text")
    add_output_options(parser, name="linux", val_fraction=0.01)
    arguments = parser.parse_args()
    archive = arguments.archive or find_archive(arguments.out)
    print(f"reading {archive}", flush=True)
    subset = set(arguments.subset.split(",")) if arguments.subset else set()
    left = (arguments.limit_mb or 10**9) * 10**6
    with ShardSet(arguments.out, arguments.name, arguments.shard_tokens) as shards:
        for directory, texts in by_directory(read_texts(archive, subset)):
            split = "val" if is_held_out(directory, arguments.val_fraction) else "train"
            for text in texts:
                shards.add(split, [text])
                left -= len(text)
            if left <= 0:
                break
        if not shards.splits["val"].documents and arguments.val_fraction > 0:
            print("warning: no directory was held out; a larger --val-fraction holds out more", file=sys.stderr)


if __name__ == "__main__":
    run(main)
