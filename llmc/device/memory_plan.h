// The memory plan: every device buffer of a run by name, known before any is allocated. The same list is
// printed by --plan, judged against the free memory, and allocated as one arena. Who plans a buffer keeps its
// offset in the arena and asks for the address when it is needed.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct MemoryPlan MemoryPlan;

MemoryPlan *memory_plan_create(Device *device);

// Releases the arena too.
void memory_plan_free(MemoryPlan *plan);

// The offset of a buffer of 0 bytes, whose address is NULL.
#define NO_BUFFER SIZE_MAX

// Plans a buffer of `bytes` under this name, aligned to 256 bytes, and returns its offset in the arena.
size_t memory_plan_add(MemoryPlan *plan, size_t bytes, const char *name, ...)
    __attribute__((format(printf, 3, 4)));

// Bytes of the arena.
size_t memory_plan_bytes(const MemoryPlan *plan);

// Whether the device has this much free, with a hundredth of its memory left for what libraries take.
bool memory_plan_fits(const MemoryPlan *plan);

void memory_plan_print(const MemoryPlan *plan);

// Allocates the arena, contents undefined; where there is no room, prints the plan and fails with a message
// that names the buffer at which the device's memory ends.
void memory_plan_allocate(MemoryPlan *plan);

// The address of the buffer at this offset; NULL for NO_BUFFER, or before memory_plan_allocate.
void *memory_at(const MemoryPlan *plan, size_t offset);

#ifdef __cplusplus
}
#endif
