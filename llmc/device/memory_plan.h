// The memory plan: a list of every device buffer of a run, by name, complete before any is allocated. This
// list is what --plan prints, what is compared with the free memory, and what is allocated, as one arena. The
// code that plans a buffer keeps its offset in the arena and asks memory_at for the address when it needs it.
#pragma once
#include "device/device.h"

typedef struct MemoryPlan MemoryPlan;

// The plan counts on the memory that is free on the device now.
MemoryPlan *memory_plan_create(Device *device);

// Frees the plan, and the arena if it is allocated.
void memory_plan_free(MemoryPlan *plan);

// `bytes` rounded up so that what follows in the same buffer starts at a multiple of 256 bytes, as allocations do.
static inline size_t aligned(size_t bytes) {
    return (size_t)round_up((int64_t)bytes, 256);
}

// The offset that a buffer of 0 bytes gets; its address is NULL.
#define NO_BUFFER SIZE_MAX

// Plans a buffer of `bytes` bytes under this name (a printf format) and returns its offset in the arena, a
// multiple of 256 bytes.
size_t memory_plan_add(MemoryPlan *plan, size_t bytes, const char *name, ...)
    __attribute__((format(printf, 3, 4)));

// Plans so many bytes of host memory for the copy of what a save writes, beside the arena. They are printed and
// compared with what the host has left, but not part of the arena: a save without room does without the copy.
void memory_plan_add_copy(MemoryPlan *plan, size_t bytes);

// Bytes of the arena.
size_t memory_plan_bytes(const MemoryPlan *plan);

// Whether the arena fits the device's free memory and leaves 1% of its total memory for libraries.
bool memory_plan_fits(const MemoryPlan *plan);

// Whether the copy fits what is left of the host's free memory beside the arena.
bool memory_plan_copy_fits(const MemoryPlan *plan);

void memory_plan_print(const MemoryPlan *plan);

// Allocates the arena, contents undefined. If there is not enough memory it prints the plan and ends the
// process with a message that names the first buffer that does not fit.
void memory_plan_allocate(MemoryPlan *plan);

// The address of the buffer planned at `offset`; NULL for NO_BUFFER, or before memory_plan_allocate.
void *memory_at(const MemoryPlan *plan, size_t offset);
