// Shared by the tests of Lighthouse attention's operations.
#pragma once
#include "dev/test/ops/case.h"

// The sizes to test: WHOLE_SIZES with whole sequences, then others with sequences in pieces, for scatter
// only.
enum { WHOLE_SIZES = 6, LIGHTHOUSE_SIZES = 12 };
extern const Sizes lighthouse_sizes[LIGHTHOUSE_SIZES];

// Variants of gather. GATHER_TURNED: queries and keys are turned before, so that the backward turns back.
enum { GATHER_PLAIN, GATHER_TURNED };

// Variants of scatter for a sequence in pieces. HALO_GIVEN: with halos from the pieces before (forward) and
// after (backward). HALO_NONE: without.
enum { HALO_GIVEN, HALO_NONE };

// Sets the case's Lighthouse shape from its sizes.
void set_lighthouse_shape(Case *c);

// Elements of what is gathered: [batch, entries, 3·heads, head_dim].
int64_t gathered_count(const LighthouseShape *shape);

// Adds the tensor `positions`: a selection by random scores, the same for every device.
void add_positions(Case *c);
