// The memory plan: every device buffer of a run by name, known before any is allocated. The same list is
// printed by --plan, judged against the free memory, and allocated.
#pragma once
#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    char name[64];
    size_t bytes;
    void **where; // receives the memory
} PlanEntry;

typedef struct {
    PlanEntry *entries;
    int count, capacity;
    size_t bytes; // of all entries
} MemoryPlan;

// Adds a buffer of `bytes` (nothing if 0) whose address plan_allocate will store in *where.
void plan_add(MemoryPlan *plan, size_t bytes, void **where, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

// Whether the device has this much free, with a hundredth of its memory left for what libraries take.
bool plan_fits(const MemoryPlan *plan, Device *device);

void plan_print(const MemoryPlan *plan, Device *device);

// Allocates every entry; fails naming the entry that found no room, and the plan.
void plan_allocate(MemoryPlan *plan, Device *device);

// Releases what plan_allocate allocated.
void plan_release(MemoryPlan *plan, Device *device);

// Forgets all entries; nothing may be allocated.
void plan_clear(MemoryPlan *plan);

#ifdef __cplusplus
}
#endif
