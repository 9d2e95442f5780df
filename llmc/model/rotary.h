// Rotary positions (arXiv 2104.09864): where Lighthouse layers turn, and the table of angles that they and dense
// layers turn queries and keys by.
#pragma once
#include "device/device.h"
#include "parallel/communicator.h"

// What Lighthouse layers turn: every token's query and key, before they are pooled; or those of the selected
// entries, after it, at the position of the last token that an entry covers.
typedef enum { ROPE_BEFORE_POOLING, ROPE_AFTER_POOLING } RopePooling;

// Their names, as --rope-pooling takes them; ends with NULL.
extern const char *const rope_pooling_names[];

// Uploads the cosine and sine of position · theta^(-2j/head_dim) for the positions that a rank of the
// context-parallel group holds of a sequence, seq_len of them: angles A[seq_len, head_dim/2, 2] on the device.
void rotary_upload(Device *device, void *angles, int64_t seq_len, int64_t head_dim, double theta,
                   Group context);
