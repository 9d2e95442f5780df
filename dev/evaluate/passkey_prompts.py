#!/usr/bin/env python3
"""Makes what the passkey tool builds prompts from, for a model whose tokens are those of a Hugging Face tokenizer.

    dev/evaluate/passkey_prompts.py --tokenizer tokenizer.json --out prompts.json
    build/cuda/dev/evaluate/passkey CHECKPOINT --prompts prompts.json

Needs the library `tokenizers`. The file is JSON: "filler" (the tokens of random letters, from which pieces are cut),
"needles" (the sentences that hide a digit, for each of the ten), "question" (what a prompt ends with) and "answers" (the
token of each digit that follows the question).
"""

import argparse
import json
import random
import string
import sys

LETTERS_AT_ONCE = 10_000  # tokenizers are slow on one long word
SENTENCES = "\nthe pass key is {digit}. remember it. {digit} is the pass key.\n"
QUESTION = "\nthe pass key is {digit}"


class ArgumentParser(argparse.ArgumentParser):
    """Ends with one line and exit code 1, as the program does."""

    def error(self, message):
        sys.exit(f"error: {message} (--help lists the options)")


def load_tokenizer(path):
    """From text to its tokens, without special ones."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("error: the library tokenizers is needed: python3 -m pip install tokenizers")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises Exception itself
        sys.exit(f"error: cannot read the tokenizer {path}: {error}")
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def make_filler(encode, tokens, seed):
    chooser, filler = random.Random(seed), []
    while len(filler) < tokens:
        filler += encode("".join(chooser.choices(string.ascii_letters, k=LETTERS_AT_ONCE)))
    return filler


def split_question(encode):
    """The tokens that are the same whatever the digit, and for each digit the one token that follows them."""
    asked = [encode(QUESTION.format(digit=digit)) for digit in range(10)]
    answers = [tokens[-1] for tokens in asked]
    if len({tuple(tokens[:-1]) for tokens in asked}) > 1 or len(set(answers)) < 10:
        sys.exit("error: with this tokenizer a digit is not one token of its own after \"the pass key is \"")
    return asked[0][:-1], answers


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", metavar="FILE", required=True, help="tokenizer.json")
    parser.add_argument("--out", metavar="FILE", default="prompts.json", help="default: %(default)s")
    parser.add_argument("--tokens", metavar="N", type=int, default=1 << 20,
                        help="of filler, at least the longest prompt's (default: %(default)s)")
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="of the letters (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.tokens < 1:
        parser.error(f"--tokens {arguments.tokens}: expected at least 1")
    encode = load_tokenizer(arguments.tokenizer)
    question, answers = split_question(encode)
    parts = {"format": "passkey prompts", "version": 1, "question": question, "answers": answers,
             "needles": [encode(SENTENCES.format(digit=digit)) for digit in range(10)],
             "filler": make_filler(encode, arguments.tokens, arguments.seed)}
    try:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(parts, file)
    except OSError as error:
        sys.exit(f"error: cannot write {arguments.out}: {error.strerror}")
    print(f"{arguments.out}: {len(parts['filler'])} tokens of filler, sentences of {len(parts['needles'][0])}")


if __name__ == "__main__":
    main()
