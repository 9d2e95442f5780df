#include "device/memory_plan.h"

#include "base/host_memory.h"

#include <stdarg.h>
#include <stdlib.h>

typedef struct {
    char name[64];
    size_t bytes;
} PlannedBuffer;

struct MemoryPlan {
    Device *device;
    PlannedBuffer *buffers;
    int count, capacity;
    size_t bytes;                                    // of the arena
    size_t copy_bytes;                               // of host memory; 0: no copy is made
    size_t free_bytes, total_bytes, host_free_bytes; // when the plan was begun
    char *arena;                                     // NULL until it is allocated
};

MemoryPlan *memory_plan_create(Device *device) {
    MemoryPlan *plan = host_allocate(1, sizeof(MemoryPlan), "the memory plan");
    plan->device = device;
    device->memory(device, &plan->free_bytes, &plan->total_bytes);
    plan->host_free_bytes = host_memory("").free_bytes / (size_t)device->host_sharers;
    return plan;
}

void memory_plan_free(MemoryPlan *plan) {
    if (plan->arena) plan->device->release(plan->device, plan->arena);
    free(plan->buffers);
    free(plan);
}

size_t memory_plan_add(MemoryPlan *plan, size_t bytes, const char *name, ...) {
    if (bytes == 0) return NO_BUFFER;
    if (plan->count == plan->capacity) {
        plan->capacity = plan->capacity ? 2 * plan->capacity : 64;
        plan->buffers = realloc(plan->buffers, (size_t)plan->capacity * sizeof(PlannedBuffer));
        if (!plan->buffers) fatal("out of host memory: the memory plan");
    }
    PlannedBuffer *buffer = &plan->buffers[plan->count++];
    va_list arguments;
    va_start(arguments, name);
    vsnprintf(buffer->name, sizeof(buffer->name), name, arguments);
    va_end(arguments);
    buffer->bytes = bytes;
    const size_t offset = plan->bytes;
    plan->bytes += aligned(bytes);
    return offset;
}

void memory_plan_add_copy(MemoryPlan *plan, size_t bytes) {
    plan->copy_bytes += bytes;
}

size_t memory_plan_bytes(const MemoryPlan *plan) {
    return plan->bytes;
}

bool memory_plan_fits(const MemoryPlan *plan) {
    return plan->bytes + plan->total_bytes / 100 <= plan->free_bytes;
}

// What the host has left beside the arena.
static size_t host_left(const MemoryPlan *plan) {
    const size_t taken = plan->device->on_host ? plan->bytes : 0;
    return plan->host_free_bytes - min_size(plan->host_free_bytes, taken);
}

bool memory_plan_copy_fits(const MemoryPlan *plan) {
    return plan->copy_bytes <= host_left(plan);
}

static void print_plan(FILE *file, const MemoryPlan *plan) {
    char size[32], available[32];
    fprintf(file, "memory plan\n");
    for (int i = 0; i < plan->count; i++)
        fprintf(file, "  %-46s %12s\n", plan->buffers[i].name,
                format_bytes(size, (double)plan->buffers[i].bytes));
    fprintf(file, "  %-46s %12s of %s free on %s: %s\n", "total", format_bytes(size, (double)plan->bytes),
            format_bytes(available, (double)plan->free_bytes), plan->device->name,
            memory_plan_fits(plan) ? "fits" : "does not fit");
    if (plan->copy_bytes > 0)
        fprintf(file, "  %-46s %12s of %s left on the host: %s\n", "copy of a checkpoint while it is saved",
                format_bytes(size, (double)plan->copy_bytes),
                format_bytes(available, (double)host_left(plan)),
                memory_plan_copy_fits(plan) ? "fits" : "does not fit; training waits for the disk instead");
}

void memory_plan_print(const MemoryPlan *plan) {
    print_plan(stdout, plan);
}

// The first buffer that does not fit the free memory; the last one if the sizes fit (the device may still
// have refused so large an arena).
static const PlannedBuffer *first_without_room(const MemoryPlan *plan) {
    size_t end = 0;
    int i = 0;
    while (i + 1 < plan->count && (end += plan->buffers[i].bytes) <= plan->free_bytes) i++;
    return &plan->buffers[i];
}

void memory_plan_allocate(MemoryPlan *plan) {
    if (plan->bytes == 0) return;
    // Compared with what was free before any process of this host allocated: now others may have their share.
    if (plan->bytes <= plan->free_bytes)
        plan->arena = (char *)plan->device->allocate(plan->device, plan->bytes);
    if (plan->arena) return;
    const PlannedBuffer *buffer = first_without_room(plan);
    char size[32];
    print_plan(stderr, plan);
    fatal("out of memory on %s: no room for %s (%s); a shorter --seq-len, a smaller --batch-size or more "
          "--recompute needs less",
          plan->device->name, buffer->name, format_bytes(size, (double)buffer->bytes));
}

void *memory_at(const MemoryPlan *plan, size_t offset) {
    return offset == NO_BUFFER || !plan->arena ? NULL : plan->arena + offset;
}
