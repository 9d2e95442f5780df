// The host's memory: how much this process may still take, and how much it has.
#pragma once
#include "base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t free_bytes;  // that can be taken without swapping and without being killed, less a margin
    size_t total_bytes; // of the machine, or of the tightest limit on this process
} HostMemory;

// Whichever leaves least: the machine's free memory, or the limit of one of the control groups that this process
// is in (v1 or v2; batch systems and containers set them) less what is used there. Page caches count as free:
// they make room. `root` is what /proc and /sys are below: "".
HostMemory host_memory(const char *root);

// Bytes of host memory that this process uses now (its resident set); 0 if that cannot be found out.
size_t process_memory(const char *root);

#ifdef __cplusplus
}
#endif
