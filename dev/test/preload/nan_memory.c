// Memory that was never zero, for tests: preloaded into a program (LD_PRELOAD), it fills what a CPU device
// allocates with NaN, of every type of numbers, so that what is read before it is written shows.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    int (*next)(void **, size_t, size_t) =
        (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    const int status = next(memory, alignment, bytes);
    if (status == 0) memset(*memory, 0xff, bytes);
    return status;
}
