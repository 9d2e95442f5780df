// The tests of Lighthouse attention. Those with a device run on any.
#pragma once
#include "dev/test/selection/layer.h"

// settings.c
void bad_settings_are_refused(void *unused);
void settings_are_judged_by_the_rules(void *unused);
void device_knows_its_limits(void *device);

// picks.c
void published_selections_are_reproduced(void *device);
void selections_have_their_properties(void *device);
void ties_go_to_the_lower_index(void *device);
void long_chunks_are_streamed(void *device);
void most_picks_fit(void *device);

// whole_layer.c
void backwards_are_transposes(void *device);
void layer_is_causal(void *device);
void layer_has_its_gradient(void *unused);

// pytorch.c
void layer_matches_pytorch(void *unused);

// pieces.c
void pieces_make_the_whole(void *device);

// devices.c
void replayed_picks_give_the_same(void *device);
void few_picks_differ(void *device);
void layer_repeats_to_the_bit(void *device);
