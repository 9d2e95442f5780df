#!/usr/bin/env python3
"""How fast compiled PyTorch runs forward and backward of the dense 530M model on one sequence, on a GPU.

bfloat16, no recompute but of the loss, which is computed in chunks: the figures to compare train_lighthouse with.
"""

import argparse
import statistics

import torch

from model import Config, Decoder
from train import attention_backend

MODEL = Config(vocab_size=128256, dim=1024, layers=30, heads=8, kv_heads=8, ffn_dim=1536)


def forward_backward_ms(model, tokens, targets):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    (model.loss(tokens, targets) / targets.numel()).backward()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=98304)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Decoder(MODEL, torch.bfloat16)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        tokens, targets = torch.randint(MODEL.vocab_size, (2, 1, arguments.seq_len))
    model.compile_parts()
    with attention_backend("cuda"):
        for _ in range(2):  # compiles, and lets the allocator settle
            forward_backward_ms(model, tokens, targets)
        torch.cuda.reset_peak_memory_stats()
        ms = statistics.median(forward_backward_ms(model, tokens, targets) for _ in range(arguments.repeats))
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {arguments.seq_len} tokens: {ms:.1f} ms, "
          f"{1e3 * arguments.seq_len / ms:.0f} tokens/s, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
