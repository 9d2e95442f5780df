// The largest shapes that the kernels take. Device.supports and SelectionOps.supported refuse larger ones
// before anything is queued; each kernel's file checks, as it is compiled, that it can do what stands here.
#pragma once
#include <stdint.h>

constexpr int HEAD_DIM_MAX = 256;        // values of a head, where they are a multiple of 16
constexpr int UNEVEN_HEAD_DIM_MAX = 128; // and where they are one of 8 only
constexpr int64_t DIM_MAX = 16384;       // values of a row that is normalized
constexpr int64_t BATCH_MAX = 32767;     // sequences in two pieces each: a grid's z reaches to 65535
constexpr int LEVELS_MAX = 8;            // of a pyramid
