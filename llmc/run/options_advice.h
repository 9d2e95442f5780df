// Warnings of options that are allowed and hardly what was meant.
#pragma once
#include "run/options.h"

// What the training data hold; samples 0: they are not known, and nothing is said of them.
typedef struct {
    int64_t samples;
    int64_t largest_token; // that was seen
} DataSummary;

// Warns of each such option; `resumed`: of those that can still be changed.
void options_advise(const Options *options, DataSummary data, bool resumed);
