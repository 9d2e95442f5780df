"""Training runs."""

import math

from .harness import (
    as_tokens, check, check_equal, check_same_checkpoint, checkpoint, make_shards, make_text, read_directory,
    read_metrics, test, train, write_shard,
)


@test
def training_learns_more_than_frequencies():
    said = make_shards().stdout
    entropy = float(said.split("unigram entropy ")[1].split()[0])
    train(val_data="shards/text_val_*.bin", seq_len=64, global_batch=4, batch_size=4, steps=120, lr=1e-2,
          warmup_steps=10, val_every=50)
    metrics = read_metrics()
    first, last = metrics[0]["loss"], metrics[-1]["loss"]
    check(abs(first - math.log(264)) < 1, f"the first loss is {first}, not about log(264)")
    check(last < 0.7 * entropy, f"the loss ends at {last}; the unigram entropy is {entropy}")
    check(metrics[-1]["val_loss"] < 0.7 * entropy, f"the validation loss ends at {metrics[-1]['val_loss']}")
    check_equal("steps with a validation", [m["step"] for m in metrics if "val_loss" in m], [50, 100, 120])


@test
def learning_rates_follow_the_schedule():
    make_shards()
    steps, warmup, peak, final = 12, 4, 3e-3, 0.1

    def expected(kind, step):
        if step < warmup:
            return peak * (step + 1) / warmup
        start = warmup - 1 if kind != "wsd" else max(warmup - 1, steps - 1 - round(0.25 * steps))
        done = max(0.0, (step - start) / (steps - 1 - start))
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "wsd": 1 - done}
        return peak * (1 if kind == "constant" else final + (1 - final) * left[kind])

    for kind in ("constant", "linear", "cosine", "wsd"):
        train(lr_schedule=kind, steps=steps, warmup_steps=warmup, lr=peak, final_lr_frac=final, decay_frac=0.25,
              out=f"runs/{kind}")
        for step, entry in enumerate(read_metrics(f"runs/{kind}")):
            check(math.isclose(entry["lr"], expected(kind, step), rel_tol=1e-9),
                  f"{kind}, step {step}: {entry['lr']}, expected {expected(kind, step)}")


@test
def shards_of_either_token_type_train_the_same():
    tokens = as_tokens(make_text(100))
    write_shard("narrow.bin", tokens)
    write_shard("wide.bin", tokens, magic=20240801, version=7)
    train(train_data="narrow.bin", out="narrow")
    train(train_data="wide.bin", out="wide")
    name = "model.safetensors"
    check(read_directory(checkpoint(4, "narrow"))[name] == read_directory(checkpoint(4, "wide"))[name],
          "the models differ")


@test
def the_seed_decides_the_weights():
    make_shards()
    for out, seed in (("a", 7), ("b", 7), ("c", 8)):
        train(out=out, seed=seed)
    check_same_checkpoint(checkpoint(4, "a"), checkpoint(4, "b"))
    check(read_metrics("a")[0]["loss"] != read_metrics("c")[0]["loss"], "another seed gives the same loss")
