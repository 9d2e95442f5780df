#!/usr/bin/env python3
"""Makes token shards of bytes from any files.

Every file is one document, in the order given and directories in sorted order; .gz, .bz2 and .xz files are read
decompressed. Links found in directories are not followed. Which documents are held out for validation depends on their
names and sizes alone. Shards of an earlier run with the same --out and --name are replaced.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import zlib

from shards import ArgumentParser, DataError, ShardSet, add_output_options, run

CHUNK = 1 << 20
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Document:
    def __init__(self, path, name):
        self.path = path
        self.size = os.stat(path).st_size  # of the file, which may be compressed
        self.order = hashlib.blake2b(os.fsencode(name)).digest()
        self.held_out = 0.0  # the fraction of the document, at its end, that is used for validation

    def chunks(self):
        opener = OPENERS.get(os.path.splitext(self.path)[1], open)
        try:
            with opener(self.path, "rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error


def find_documents(paths):
    """Every non-empty regular file among the paths or below directories among them, each once."""
    documents = {}

    def add(path, name):
        if os.path.isfile(path) and os.path.getsize(path) > 0:
            documents.setdefault(os.path.realpath(path), Document(path, name))

    for root in paths:
        if not os.path.exists(root):
            raise DataError(f"{root} does not exist")
        if not os.path.isdir(root):
            add(root, os.path.basename(root))
            continue
        for directory, subdirectories, files in os.walk(root, onerror=fail):
            subdirectories.sort()
            for path in (os.path.join(directory, file) for file in sorted(files)):
                if not os.path.islink(path):
                    add(path, os.path.relpath(path, root))
    return list(documents.values())


def fail(error):
    raise error


def hold_out(documents, fraction):
    """Chooses documents for validation, in an order by the hash of their names, as long as they fit in the fraction.
    If more than half of the fraction is then missing, the end of the largest document is taken too."""
    wanted = fraction * sum(document.size for document in documents)
    missing = wanted
    for document in sorted(documents, key=lambda document: document.order):
        if document.size <= missing:
            document.held_out = 1.0
            missing -= document.size
    largest = max(documents, key=lambda document: document.size)
    if missing > wanted / 2:
        largest.held_out = missing / largest.size


def part(chunks, start, end):
    """Bytes start … end-1 of the chunks."""
    for chunk in chunks:
        yield chunk[max(start, 0):max(end, 0)]
        start -= len(chunk)
        end -= len(chunk)


def add_document(shards, document):
    if document.held_out in (0.0, 1.0):
        shards.add("val" if document.held_out else "train", document.chunks())
        return
    length = sum(len(chunk) for chunk in document.chunks())
    end = max(1, length - max(1, round(length * document.held_out)))
    shards.add("train", part(document.chunks(), 0, end))
    shards.add("val", part(document.chunks(), end, length))


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="files and directories")
    add_output_options(parser, name="text", val_fraction=0.02)
    arguments = parser.parse_args()
    documents = find_documents(arguments.paths)
    if not documents:
        raise DataError("there is no file that is not empty in " + " ".join(arguments.paths))
    hold_out(documents, arguments.val_fraction)
    with ShardSet(arguments.out, arguments.name, arguments.shard_tokens) as shards:
        for document in documents:
            add_document(shards, document)


if __name__ == "__main__":
    run(main)
