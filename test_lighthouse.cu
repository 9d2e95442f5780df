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

// What several processes do together, in each of them: mpirun -np 4 ./test_lighthouse. On the CPU or, with
// "cuda", on a GPU for each.
static void test_ranks(const Communicator *communicator, bool cuda) {
    static const StorageType types[] = {STORAGE_FLOAT64, STORAGE_FLOAT32, STORAGE_BFLOAT16};
    printf("--- %d processes\n", communicator->size);
    test_together(communicator);
    if (!cuda) test_parallel_checkpoint(communicator);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (cuda && types[i] != STORAGE_BFLOAT16) continue;
        Device *device = cuda ? cuda_device_create(communicator->local_rank % cuda_device_count())
                              : cpu_device_create(types[i]);
        test_parallel(device, communicator);
        device->destroy(device);
    }
}

// Without arguments everything; with "cpu" or "cuda" only the tests of that device's operations and steps,
// and with words after it only those of them whose name contains one.
int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : "";
    if (argc > 2) test_only(argc - 2, argv + 2);
    Communicator communicator = communicator_create(&argc, &argv);
    if (communicator.size > 1) {
        test_ranks(&communicator, !strcmp(only, "cuda"));
        const int status = test_summary();
        communicator_destroy(&communicator);
        return status;
    }
    if (!only[0]) {
        test_common();
        test_reason();
        test_options();
        test_data();
        test_guard();
        test_logger();
        test_safetensors();
        test_checkpoint();
        test_checkpoint_damage();
        test_checkpoint_directory();
        test_saver();
        test_optimizer_file();
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
