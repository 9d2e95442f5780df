// What the options mean together: which combinations are refused, and what follows from them.
#pragma once
#include "model/geometry.h"
#include "run/guard.h"
#include "run/options.h"

LighthouseSettings options_lighthouse(const Options *options);
GuardSettings options_guard(const Options *options);

// Refuses options that do not go together, or not with so many processes.
void options_check(const Options *options, int processes);

// How many micro-steps an optimizer step takes with so many processes.
int64_t options_micro_steps(const Options *options, int processes);

// Sets dense[config.layers] from the list of --dense-layers; of rotate:R, none.
void options_dense_layers(const Options *options, bool *dense);

// The token between documents; -1: none, or (auto) not settled yet.
int64_t options_separator(const Options *options);

// Settles --separator-token auto, by the largest token seen in the data.
void options_settle_separator(Options *options, int64_t largest_token);

// R of --dense-layers rotate:R; 0 if the layers are a list.
int64_t options_dense_rotate(const Options *options);
