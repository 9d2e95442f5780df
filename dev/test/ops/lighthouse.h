// What the tests of Lighthouse attention's operations share.
#pragma once
#include "dev/test/ops/case.h"

// The sizes of all of them: of whole sequences, and of sequences in pieces, for scatter alone.
enum { WHOLE_SIZES = 6, LIGHTHOUSE_SIZES = 12 };
extern const Sizes lighthouse_sizes[LIGHTHOUSE_SIZES];

// Variants of gather: as it is, or of queries and keys that are turned first, so that the backward turns back.
enum { GATHER_PLAIN, GATHER_TURNED };

// Variants of scatter, of a sequence in pieces: the pieces before give something, and those after hand
// something back, or not.
enum { HALO_GIVEN, HALO_NONE };

// The shape of the case's sizes.
void set_lighthouse_shape(Case *c);

// Elements of what is gathered: [batch, entries, 3·heads, head_dim].
int64_t gathered_count(const LighthouseShape *shape);

// A selection by random scores, which every device is given.
void add_positions(Case *c);
