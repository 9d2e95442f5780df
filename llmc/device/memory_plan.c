#include "device/memory_plan.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void plan_add(MemoryPlan *plan, size_t bytes, void **where, const char *format, ...) {
    if (bytes == 0) {
        *where = NULL;
        return;
    }
    if (plan->count == plan->capacity) {
        plan->capacity = plan->capacity ? 2 * plan->capacity : 64;
        plan->entries = (PlanEntry *)realloc(plan->entries, (size_t)plan->capacity * sizeof(PlanEntry));
        if (!plan->entries) fatal("out of host memory: the memory plan");
    }
    PlanEntry *entry = &plan->entries[plan->count++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(entry->name, sizeof(entry->name), format, arguments);
    va_end(arguments);
    entry->bytes = bytes;
    entry->where = where;
    plan->bytes += bytes;
}

bool plan_fits(const MemoryPlan *plan, Device *device) {
    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    return plan->bytes + total_bytes / 100 <= free_bytes;
}

static void print_plan(FILE *file, const MemoryPlan *plan, Device *device) {
    char size[32], available[32];
    size_t free_bytes, total_bytes;
    device->memory(device, &free_bytes, &total_bytes);
    fprintf(file, "memory plan\n");
    for (int i = 0; i < plan->count; i++)
        fprintf(file, "  %-46s %12s\n", plan->entries[i].name,
                format_bytes(size, (double)plan->entries[i].bytes));
    fprintf(file, "  %-46s %12s of %s free on %s: %s\n", "total", format_bytes(size, (double)plan->bytes),
            format_bytes(available, (double)free_bytes), device->name,
            plan_fits(plan, device) ? "fits" : "does not fit");
}

void plan_print(const MemoryPlan *plan, Device *device) {
    print_plan(stdout, plan, device);
}

void plan_allocate(MemoryPlan *plan, Device *device) {
    for (int i = 0; i < plan->count; i++) {
        PlanEntry *entry = &plan->entries[i];
        *entry->where = device->allocate(device, entry->bytes);
        if (*entry->where) continue;
        char size[32];
        print_plan(stderr, plan, device);
        fatal("out of memory on %s: no room for %s (%s); a shorter --seq-len, a smaller --batch-size or more "
              "--recompute needs less",
              device->name, entry->name, format_bytes(size, (double)entry->bytes));
    }
}

void plan_release(MemoryPlan *plan, Device *device) {
    for (int i = 0; i < plan->count; i++) {
        if (*plan->entries[i].where) device->release(device, *plan->entries[i].where);
        *plan->entries[i].where = NULL;
    }
}

void plan_clear(MemoryPlan *plan) {
    free(plan->entries);
    memset(plan, 0, sizeof(*plan));
}
