// Takes the place of llmc/device/cuda in a build without CUDA: there are no CUDA devices.
#include "device/device.h"

#ifndef USE_CUDA

int cuda_device_count(void) {
    return 0;
}

Device *cuda_device_create(int index) {
    fatal("cannot use CUDA device %d: this program was built without CUDA (make DEVICE=cpu); build it with "
          "make DEVICE=cuda, or run it with --device cpu",
          index);
}

#endif
