// The table of rotary angles (arXiv 2104.09864) that the RoPE operations turn queries and keys by.
#pragma once
#include "device/device.h"
#include "parallel/communicator.h"

// Uploads the cosine and sine of position · theta^(-2j/head_dim) for the positions that a rank of the
// context-parallel group holds of a sequence, seq_len of them: angles A[seq_len, head_dim/2, 2] on the device.
void rotary_upload(Device *device, void *angles, int64_t seq_len, int64_t head_dim, double theta,
                   Group context);
