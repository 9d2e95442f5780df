// All operations of the CPU, compiled for one storage type. They are also the reference that other devices
// are tested against. Loops are divided so that no result depends on the number of threads.
#include "device/cpu/operations.h"

Ops CPU_NAME(ops)(void) {
    return (Ops){.storage = STORAGE_TYPE,
                 .embedding = CPU_NAME(embedding),
                 .rmsnorm = CPU_NAME(rmsnorm),
                 .linear = CPU_NAME(linear),
                 .rope = CPU_NAME(rope),
                 .attention = CPU_NAME(attention),
                 .selection = CPU_NAME(selection),
                 .gather = CPU_NAME(gather),
                 .scatter = CPU_NAME(scatter),
                 .swiglu = CPU_NAME(swiglu),
                 .loss = CPU_NAME(loss),
                 .reduce = CPU_NAME(reduce),
                 .convert = CPU_NAME(convert),
                 .optimizer = CPU_NAME(optimizer)};
}
