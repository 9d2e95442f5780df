#include "model/scorer.h"

const char *const scorer_names[] = {"norm", NULL};
const Scorer scorers[] = {
    {.by_rope = true}, // norm: the Euclidean norms, as published
};
