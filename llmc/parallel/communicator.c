#include "parallel/communicator.h"

#include "parallel/watchdog.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef USE_MPI
#include <mpi.h>

static MPI_Comm handle(const Communicator *communicator, GroupKind group) {
    return (MPI_Comm)communicator->handles[group];
}

// Launchers of MPI programs set one of these variables. Without a launcher MPI is not started: that would
// take a third of a second for nothing. Slurm numbers the task of an interactive shell or of a batch script too;
// there MPI would find no launcher and end the process.
static bool started_by_launcher(void) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < COUNT_OF(variables); i++)
        if (getenv(variables[i])) return true;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    return getenv("SLURM_PROCID") && tasks && atoi(tasks) > 1;
}

static pid_t running; // the process in which MPI runs, 0 if none: a child that it forked must not end MPI
static bool alone;    // MPI started this process only

// Runs at exit. After a failure it ends all ranks: some, on other hosts, may be waiting for this one, and not
// every launcher would end them.
static void end(int status, void *unused) {
    (void)unused;
    if (running != getpid()) return;
    if (status == 0 || alone)
        MPI_Finalize();
    else
        MPI_Abort(MPI_COMM_WORLD, 1);
}

static void start_mpi(Communicator *communicator, int *argc, char ***argv) {
    int provided;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &communicator->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &communicator->size);
    communicator->handles[GROUP_WORLD] = MPI_COMM_WORLD;
    communicator->groups[GROUP_WORLD] = (Group){communicator->rank, communicator->size};
    MPI_Comm host;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, communicator->rank, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &communicator->local_rank);
    MPI_Comm_size(host, &communicator->local_size);
    MPI_Comm_free(&host);
    running = getpid();
    alone = communicator->size == 1;
    on_exit(end, NULL);
    if (alone) return;
    errors_name_rank(communicator->rank);
    if (communicator->rank > 0 && !freopen("/dev/null", "w", stdout)) fatal("cannot open /dev/null");
}
#endif

// Fails if a launcher started several processes but each believes that it is alone: all of them would write
// the same files.
static void refuse_strangers(const Communicator *communicator) {
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < COUNT_OF(variables) && communicator->size == 1; i++) {
        const char *started = getenv(variables[i]);
        if (started && atoi(started) > 1)
            fatal("%s processes were started (%s), but this one knows of no other: this program was built %s",
                  started, variables[i],
#ifdef USE_MPI
                  "with another MPI than started it"
#else
                  "without MPI (USE_MPI=0)"
#endif
            );
    }
}

Communicator communicator_create(int *argc, char ***argv) {
    const Group of_one = {0, 1};
    Communicator communicator = {.size = 1, .local_size = 1, .groups = {of_one, of_one, of_one}};
#ifdef USE_MPI
    if (started_by_launcher()) start_mpi(&communicator, argc, argv);
#else
    (void)argc;
    (void)argv;
#endif
    refuse_strangers(&communicator);
    return communicator;
}

void communicator_divide(Communicator *communicator, int context_size) {
    const int rank = communicator->rank, size = communicator->size;
    communicator->groups[GROUP_CONTEXT] = (Group){rank % context_size, context_size};
    communicator->groups[GROUP_DATA] = (Group){rank / context_size, size / context_size};
#ifdef USE_MPI
    if (size == 1) return;
    MPI_Comm context;
    MPI_Comm_split(MPI_COMM_WORLD, rank / context_size, rank, &context);
    communicator->handles[GROUP_CONTEXT] = context;
#endif
}

void communicator_destroy(Communicator *communicator) {
#ifdef USE_MPI
    running = 0;
    if (communicator->handles[GROUP_WORLD]) MPI_Finalize();
#endif
    communicator->size = 0;
}

void communicator_gather(const Communicator *communicator, void *all, const void *mine, size_t bytes,
                         const char *what) {
    if (communicator->size == 1) {
        memcpy(all, mine, bytes);
        return;
    }
#ifdef USE_MPI
    watchdog_enter(what);
    MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, handle(communicator, GROUP_WORLD));
    watchdog_leave();
#else
    (void)what;
#endif
}

void communicator_broadcast(const Communicator *communicator, void *data, size_t bytes, const char *what) {
#ifdef USE_MPI
    if (communicator->size == 1) return;
    watchdog_enter(what);
    MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, handle(communicator, GROUP_WORLD));
    watchdog_leave();
#else
    (void)communicator, (void)data, (void)bytes, (void)what; // the only process has the bytes already
#endif
}

void communicator_barrier(const Communicator *communicator, const char *what) {
    communicator_all(communicator, true, what);
}

void communicator_sum(const Communicator *communicator, double *values, int count, const char *what) {
    const size_t size = (size_t)communicator->size, bytes = (size_t)count * sizeof(double);
    double *all = host_allocate(size, bytes, "the values of all ranks");
    communicator_gather(communicator, all, values, bytes, what);
    memset(values, 0, bytes);
    for (size_t rank = 0; rank < size; rank++)
        for (int i = 0; i < count; i++) values[i] += all[rank * (size_t)count + (size_t)i];
    free(all);
}

bool communicator_all(const Communicator *communicator, bool holds, const char *what) {
    bool *all = host_allocate((size_t)communicator->size, sizeof(bool), "the answers of all ranks");
    communicator_gather(communicator, all, &holds, sizeof(holds), what);
    bool everywhere = true;
    for (int rank = 0; rank < communicator->size; rank++) everywhere &= all[rank];
    free(all);
    return everywhere;
}
