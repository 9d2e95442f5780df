"""Writes token shards in the llm.c format from documents of bytes. Shared by the scripts in this directory.

A shard is 256 little-endian int32 (magic 20240520, version 1, token count, zeros) and then uint16 tokens. A token is a
byte; 256 ends a document.
"""

import argparse
import glob
import math
import os
import struct
import sys
from collections import Counter

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
SEPARATOR = 256
SPLITS = ("train", "val")


class DataError(Exception):
    """A fault of the data or the command; its text is for the user."""


class ArgumentParser(argparse.ArgumentParser):
    """Ends with one line and exit code 1 if the arguments are wrong, as train_lighthouse does."""

    def error(self, message):
        sys.exit(f"error: {message} (--help lists the options)")


def add_output_options(parser, name, val_fraction):
    parser.add_argument("--out", metavar="DIR", default="data", help="where the shards go (default: %(default)s)")
    parser.add_argument("--name", metavar="PREFIX", default=name,
                        help="shards are PREFIX_train_000000.bin, PREFIX_val_000000.bin, … (default: %(default)s)")
    parser.add_argument("--val-fraction", metavar="X", type=fraction, default=val_fraction,
                        help="share of the text held out for validation (default: %(default)s)")
    parser.add_argument("--shard-tokens", metavar="N", type=positive, default=100_000_000,
                        help="tokens per shard (default: %(default)s)")


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def run(main):
    """Runs main(). An error ends the script with one line and exit code 1."""
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")


class Split:
    """The shards of one split (training or validation), under temporary names until `publish`."""

    def __init__(self, stem, shard_tokens):
        self.stem, self.shard_tokens = stem, shard_tokens
        self.paths, self.file, self.room = [], None, 0
        self.byte_counts, self.documents = Counter(), 0

    def write(self, data):
        self.byte_counts.update(data)
        tokens = bytearray(2 * len(data))
        tokens[0::2] = data
        self.write_tokens(tokens)

    def end_document(self):
        self.documents += 1
        self.write_tokens(struct.pack("<H", SEPARATOR))

    def write_tokens(self, tokens):
        tokens = memoryview(tokens)
        while tokens:
            if self.room == 0:
                self.next_shard()
            piece, tokens = tokens[:2 * self.room], tokens[2 * self.room:]
            self.file.write(piece)
            self.room -= len(piece) // 2

    def next_shard(self):
        self.finish_shard()
        self.paths.append(f"{self.stem}_{len(self.paths):06d}.bin")
        self.file, self.room = open(self.paths[-1] + ".tmp", "wb"), self.shard_tokens
        self.file.write(bytes(HEADER_BYTES))

    def finish_shard(self):
        if self.file:
            self.file.seek(0)
            self.file.write(struct.pack("<3i", MAGIC, VERSION, self.shard_tokens - self.room))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None

    def publish(self):
        """Renames the shards to their final names, and deletes the other shards of an earlier set of the same name."""
        for path in set(glob.glob(glob.escape(self.stem) + "_[0-9][0-9][0-9][0-9][0-9][0-9].bin")) - set(self.paths):
            os.remove(path)
        for path in self.paths:
            os.replace(path + ".tmp", path)

    def discard(self):
        if self.file:
            self.file.close()
        for path in self.paths:
            if os.path.exists(path + ".tmp"):
                os.remove(path + ".tmp")

    @property
    def tokens(self):
        return self.byte_counts.total() + self.documents

    def entropy(self):
        """Unigram entropy of the tokens in nats: the loss of a model that knows only their frequencies."""
        counts = [*self.byte_counts.values(), self.documents]
        return -sum(count / self.tokens * math.log(count / self.tokens) for count in counts if count)


class ShardSet:
    """A training and a validation split. As a context manager it publishes both, or after an error removes both."""

    def __init__(self, directory, name, shard_tokens):
        os.makedirs(directory, exist_ok=True)
        self.splits = {split: Split(os.path.join(directory, f"{name}_{split}"), shard_tokens) for split in SPLITS}

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if error_type is None and not self.splits["train"].documents:
            self.discard()
            raise DataError("there is no text to train on")
        if error_type is not None:
            return self.discard()
        for split in self.splits.values():
            split.finish_shard()
        for split in self.splits.values():
            split.publish()
            print(summary(split))

    def discard(self):
        for split in self.splits.values():
            split.discard()

    def add(self, split, chunks):
        """Writes one document, given as chunks of bytes."""
        for chunk in chunks:
            self.splits[split].write(chunk)
        self.splits[split].end_document()


def summary(split):
    if not split.documents:
        return f"{split.stem}: none"
    return (f"{split.stem}_*.bin: {split.tokens} tokens in {split.documents} documents and {len(split.paths)} shard(s), "
            f"unigram entropy {split.entropy():.4f} nats per token")
