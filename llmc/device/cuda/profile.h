// The time that a CUDA device spends in each operation, measured with CUDA events, and the bytes and
// arithmetic that the operation needs. Costs nothing while it is off.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

// The calls of one operation; linear layers and attention have a row for each shape.
typedef struct {
    char name[96]; // "linear_forward 98304x3072x1024"
    int64_t calls;
    double milliseconds; // of all calls, on the device
    double bytes;        // of all calls: each input read once, each output written once
    double flops;        // of all calls: matrix products and attention only, else 0
} ProfileRow;

// Records every operation that is queued on this CUDA device from now on.
void cuda_profile_start(Device *device);

// Waits for the device, stops recording and returns *count rows, one per operation, the one that took most
// time first. The caller frees the rows.
ProfileRow *cuda_profile_stop(Device *device, int *count);

#ifdef __cplusplus
}
#endif
