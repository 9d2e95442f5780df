// The tests of several ranks, each of a setup.
#pragma once
#include "dev/test/parallel/setup.h"

// steps.c
void step_equals_one_ranks(void *setup);
void evaluation_equals_one_ranks(void *setup);
void a_clipped_halo_is_seen(void *setup);
void steps_repeat_and_recompute_to_the_bit(void *setup);

// optimizer.c
void sharding_changes_no_bit(void *setup);
void a_nan_of_one_rank_reaches_all(void *setup);

// ring_attention.c
void ring_equals_whole(void *setup);
void ring_plans_what_it_runs(void *setup);
