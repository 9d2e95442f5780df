#include "dev/test/ops/case.h"

#include <stdlib.h>
#include <string.h>

void free_results(Results *results) {
    for (int i = 0; i < MAX_TENSORS; i++) {
        free(results->bytes[i]);
        free(results->values[i]);
    }
}

// Bytes of 0xff are NaN in every floating-point type. As int32 they are -1, which may be a result, so
// integers are poisoned with other bytes.
enum { GUARD = 256, GUARD_BYTE = 0xa5, POISON_BYTE = 0xff, INTEGER_POISON_BYTE = 0x7f };

// The tensor's bytes as the device stores them, between two guards.
static unsigned char *guarded_bytes(const Tensor *tensor, StorageType storage) {
    const size_t bytes = bytes_of(tensor, storage);
    unsigned char *host = host_allocate(bytes + 2 * GUARD, 1, "a test tensor");
    memset(host, GUARD_BYTE, bytes + 2 * GUARD);
    if (!tensor->values)
        memset(host + GUARD, tensor->element == INT32 ? INTEGER_POISON_BYTE : POISON_BYTE, bytes);
    else if (tensor->element == INT32)
        for (size_t i = 0; i < tensor->count; i++)
            ((int32_t *)(host + GUARD))[i] = (int32_t)tensor->values[i];
    else
        storage_from_double(host + GUARD, type_of(tensor->element, storage), tensor->values, tensor->count);
    return host;
}

unsigned char *device_allocate(Device *device, size_t bytes) {
    unsigned char *memory = device->allocate(device, bytes);
    if (!memory) fatal("the test needs %zu bytes on %s", bytes, device->name);
    return memory;
}

// Downloads the tensor and checks that guards, and inputs, have not changed.
static void collect(Results *results, const Case *c, int index, Device *device, const void *memory,
                    const unsigned char *before) {
    const Tensor *tensor = &c->tensors[index];
    const size_t bytes = bytes_of(tensor, device->ops->storage);
    unsigned char *after = host_allocate(bytes + 2 * GUARD, 1, "a test tensor");
    device->download(device, after, memory, bytes + 2 * GUARD);
    check(!memcmp(after, before, GUARD), "%s: memory before %s was written", c->operation->name,
          tensor->name);
    check(!memcmp(after + GUARD + bytes, before + GUARD + bytes, GUARD), "%s: memory after %s was written",
          c->operation->name, tensor->name);
    if (tensor->role == INPUT)
        check(!memcmp(after + GUARD, before + GUARD, bytes), "%s: the input %s was written",
              c->operation->name, tensor->name);
    results->bytes[index] = host_allocate(bytes, 1, "a test tensor");
    memcpy(results->bytes[index], after + GUARD, bytes);
    results->values[index] = host_allocate(tensor->count, sizeof(double), "a test tensor");
    if (tensor->element == INT32)
        for (size_t i = 0; i < tensor->count; i++)
            results->values[index][i] = ((const int32_t *)results->bytes[index])[i];
    else
        storage_to_double(results->values[index], after + GUARD,
                          type_of(tensor->element, device->ops->storage), tensor->count);
    free(after);
}

Results run_case(const Case *c, Device *device) {
    unsigned char *before[MAX_TENSORS], *memory[MAX_TENSORS];
    void *at[MAX_TENSORS] = {NULL}, *workspace = NULL;
    for (int i = 0; i < c->count; i++) {
        const size_t bytes = bytes_of(&c->tensors[i], device->ops->storage) + 2 * GUARD;
        before[i] = guarded_bytes(&c->tensors[i], device->ops->storage);
        memory[i] = device_allocate(device, bytes);
        device->upload(device, memory[i], before[i], bytes);
        at[i] = memory[i] + GUARD;
    }
    size_t workspace_bytes = 0;
    for (int i = 0; i < c->attention_count; i++) {
        const bool backward = c->operation->forward != NULL;
        size_t bytes = device->ops->attention.workspace(&c->attention[i], backward, device->stream);
        if (bytes > workspace_bytes) workspace_bytes = bytes;
    }
    if (workspace_bytes > 0) workspace = device_allocate(device, workspace_bytes);
    c->operation->run(c, device->ops, at, workspace, device->stream);
    device->synchronize(device);
    Results results = {0};
    for (int i = 0; i < c->count; i++) {
        collect(&results, c, i, device, memory[i], before[i]);
        device->release(device, memory[i]);
        free(before[i]);
    }
    if (workspace) device->release(device, workspace);
    return results;
}
