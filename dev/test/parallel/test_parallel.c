// Steps of several ranks against the same step of one: run by mpirun, every rank the same tests.
#include "dev/test/parallel/tests.h"

#include <stdlib.h>

static void run(const char *what, void (*test)(void *), Setup *s) {
    char *name = format_string("%s, %d ranks, %d a sequence, %s: %s", storage_dtype(s->device->ops->storage),
                               s->communicator.size, context_group(s).size,
                               s->selection ? "selection" : "dense", what);
    test_run(name, test, s);
    free(name);
}

static void test_groups(Setup *s) {
    const bool context = context_group(s).size > 1;
    for (int selection = 0; selection < 2; selection++) {
        s->selection = selection == 1;
        run("a step equals one rank's", step_equals_one_ranks, s);
        run("repeats and recompute change no bit", steps_repeat_and_recompute_to_the_bit, s);
        if (context) run("evaluation equals one rank's", evaluation_equals_one_ranks, s);
    }
    if (context) run("a clipped halo is seen", a_clipped_halo_is_seen, s);
    if (context) run("ring attention equals whole", ring_equals_whole, s);
    if (context && s->device->on_host) run("ring attention plans what it runs", ring_plans_what_it_runs, s);
    run("a sharded optimizer changes no bit", sharding_changes_no_bit, s);
    run("a NaN of one rank reaches all", a_nan_of_one_rank_reaches_all, s);
}

void test_parallel(Device *device, const Communicator *communicator) {
    for (int cp = 1; cp <= communicator->size; cp *= 2) {
        if (communicator->size % cp != 0) continue;
        Setup setup = {.device = device, .communicator = *communicator};
        communicator_divide(&setup.communicator, cp);
        setup.collectives = collectives_create(device, &setup.communicator);
        test_groups(&setup);
        collectives_destroy(setup.collectives);
    }
}
