// The largest shapes that the kernels support. Device.supports and SelectionOps.supported refuse larger ones
// before anything is queued; static_asserts in the kernels' files check that they reach these limits.
#pragma once
#include <stdint.h>

constexpr int HEAD_DIM_MAX = 256;        // head_dim, if it is a multiple of 16
constexpr int UNEVEN_HEAD_DIM_MAX = 128; // head_dim, if it is a multiple of 8 but not of 16
constexpr int64_t DIM_MAX = 16384;       // elements of a row that is normalized
constexpr int64_t BATCH_MAX = 32767;     // sequences: a grid's z, at most 65535, counts two pieces of each
constexpr int LEVELS_MAX = 8;            // levels of a pyramid
