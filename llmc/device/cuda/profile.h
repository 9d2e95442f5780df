// Where the time of a CUDA device goes, operation by operation: CUDA events around every operation, together
// with the bytes it has to move and the arithmetic it has to do. Costs nothing while it is off.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// One operation, for linear layers and attention one of each shape.
typedef struct {
    char name[96]; // "linear_forward 98304x3072x1024"
    int64_t calls;
    double milliseconds; // of all calls, on the device
    double bytes;        // of all calls: each input read once, each output written once
    double flops;        // of all calls: matrix products and attention only, else 0
} ProfileRow;

// Records every operation that is queued on this CUDA device from now on.
void cuda_profile_start(Device *device);

// Waits for the device, stops recording and returns a row per operation, the costliest first; *count is how
// many. The caller frees the rows.
ProfileRow *cuda_profile_stop(Device *device, int *count);

#ifdef __cplusplus
}
#endif
