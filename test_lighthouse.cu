// test_lighthouse: the self-test. Every operation and the whole step, on the devices this was built for.
#include "dev/test/test.h"

#include <stdlib.h>
#include <string.h>

static void test_device(Device *device) {
    printf("--- %s, %s\n", device->name, storage_dtype(device->ops->storage));
    test_ops(device);
    test_lighthouse(device);
    test_model(device);
    test_large(device);
    device->destroy(device);
}

// What several processes do together, in each of them: mpirun -np 4 ./test_lighthouse [WORD…].
static int test_parallel(Communicator *communicator) {
    printf("--- %d processes\n", communicator->size);
    test_together(communicator);
    test_parallel_checkpoint(communicator);
    const int code = test_summary();
    communicator_destroy(communicator);
    return code;
}

// Without arguments everything; with "cpu" or "cuda" only the tests of that device's operations and steps,
// and with words after it only those of them whose name contains one.
int main(int argc, char **argv) {
    Communicator communicator = communicator_create(&argc, &argv);
    if (communicator.size > 1) {
        if (argc > 1) test_only(argc - 1, argv + 1);
        return test_parallel(&communicator);
    }
    const char *only = argc > 1 ? argv[1] : "";
    if (argc > 2) test_only(argc - 2, argv + 2);
    if (!only[0]) {
        test_common();
        test_options();
        test_data();
        test_checkpoint();
    }
    if (strcmp(only, "cuda") != 0) {
        test_device(cpu_device_create(STORAGE_FLOAT32));
        test_device(cpu_device_create(STORAGE_BFLOAT16));
    }
    if (strcmp(only, "cpu") != 0) {
        if (cuda_device_count() > 0)
            test_device(cuda_device_create(0));
        else
            printf("--- no CUDA device: its operations are not tested here\n");
    }
    communicator_destroy(&communicator);
    return test_summary();
}
