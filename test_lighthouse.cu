// test_lighthouse: the self-test. Every operation and the whole step, on the devices this was built for.
#include "dev/test/test.h"

#include <stdlib.h>
#include <string.h>

static void test_device(Device *device) {
    printf("--- %s, %s\n", device->name, storage_dtype(device->ops->storage));
    test_ops(device);
    test_lighthouse(device);
    test_model(device);
    test_rope_pooling(device);
    test_stage1(device);
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
    if (!cuda) test_parallel_rope_pooling(communicator);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (cuda && types[i] != STORAGE_BFLOAT16) continue;
        Device *device = cuda ? cuda_device_create(communicator->local_rank % cuda_device_count())
                              : cpu_device_create(types[i]);
        test_parallel(device, communicator);
        test_stage1_parallel(device, communicator);
        device->destroy(device);
    }
}

// Where these tests run: all of them, or those of one kind of device.
static void test_alone(bool cpu, bool cuda) {
    if (cpu && cuda) {
        test_harness();
        test_common();
        test_host_memory();
        test_reason();
        test_options();
        test_schedule();
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
    if (cpu) {
        test_device(cpu_device_create(STORAGE_FLOAT32));
        test_device(cpu_device_create(STORAGE_BFLOAT16));
    }
    if (cuda && cuda_device_count() > 0)
        test_device(cuda_device_create(0));
    else if (cuda && !cpu)
        fatal("cuda: there is no CUDA device");
    else if (cuda)
        printf("--- no CUDA device: its operations are not tested here\n");
}

// ./test_lighthouse [cpu|cuda] [WORD...]
//
// Without arguments all tests; with "cpu" or "cuda" only those of that device's operations and steps; with
// words only those whose name contains one.
int main(int argc, char **argv) {
    const bool only_cpu = argc > 1 && !strcmp(argv[1], "cpu"),
               only_cuda = argc > 1 && !strcmp(argv[1], "cuda");
    const int first_word = only_cpu || only_cuda ? 2 : 1;
    if (argc > first_word) test_only(argc - first_word, argv + first_word);
    Communicator communicator = communicator_create(&argc, &argv);
    if (communicator.size > 1)
        test_ranks(&communicator, only_cuda);
    else
        test_alone(!only_cuda, !only_cpu);
    const int status = test_summary();
    communicator_destroy(&communicator);
    return status;
}
