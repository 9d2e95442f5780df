#include "dev/test/ops/case.h"

#include <stdlib.h>
#include <string.h>

double *add_tensor(Case *c, const char *name, Role role, Element element, int64_t count) {
    Tensor *tensor = &c->tensors[c->count++];
    *tensor = (Tensor){name, role, element, (size_t)count, NULL};
    if (role == WRITTEN) return NULL;
    tensor->values = host_allocate(tensor->count, sizeof(double), "a test tensor");
    random_fill(tensor->values, tensor->count);
    return tensor->values;
}

void add_tokens(Case *c, const char *name, int64_t count, int64_t vocab) {
    double *values = add_tensor(c, name, INPUT, INT32, count);
    for (int64_t i = 0; i < count; i++) values[i] = (double)random_below((uint64_t)vocab);
}

int find_tensor(const Case *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (!strcmp(c->tensors[i].name, name)) return i;
    return -1;
}

Case make_case(const Operation *operation, Sizes sizes, int64_t alignment) {
    sizes.columns = divide_up(sizes.columns, alignment) * alignment;
    sizes.inner = divide_up(sizes.inner, alignment) * alignment;
    sizes.head_dim = (int)(divide_up(sizes.head_dim, alignment) * alignment);
    Case c = {.operation = operation, .sizes = sizes};
    operation->describe(&c);
    return c;
}

void free_case(Case *c) {
    for (int i = 0; i < c->count; i++) free(c->tensors[i].values);
}

StorageType type_of(Element element, StorageType storage) {
    return element == STORED ? storage : element == DOUBLE ? STORAGE_FLOAT64 : accumulator_type(storage);
}

size_t bytes_of(const Tensor *tensor, StorageType storage) {
    size_t size =
        tensor->element == INT32 ? sizeof(int32_t) : storage_size(type_of(tensor->element, storage));
    return tensor->count * size;
}

void round_case(Case *c, StorageType storage) {
    for (int i = 0; i < c->count; i++) {
        Tensor *tensor = &c->tensors[i];
        if (!tensor->values || tensor->element == INT32) continue;
        StorageType type = type_of(tensor->element, storage);
        void *rounded = host_allocate(tensor->count, storage_size(type), "a test tensor");
        storage_from_double(rounded, type, tensor->values, tensor->count);
        storage_to_double(tensor->values, rounded, type, tensor->count);
        free(rounded);
    }
}
