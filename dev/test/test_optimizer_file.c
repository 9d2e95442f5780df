// Optimizer files: any division of the elements among files can be read; files that do not fit together are
// refused.
#include "checkpoint_fixture.h"

#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Writes one optimizer file with the elements of these ranges, and with this metadata.
static void write_optimizer_ranges(const char *directory, int rank, int world, const Fixture *model,
                                   const ElementRange *ranges, int range_count, const char *const *metadata) {
    const TrainingState *state = &model->state;
    int64_t count = 0;
    for (int i = 0; i < range_count; i++) count += ranges[i].count;
    const StateBuffer *buffers = state->optimizer.list;
    Tensor tensors[3] = {0};
    for (int i = 0; i < 3; i++) {
        strcpy(tensors[i].name, buffers[i].name);
        tensors[i].type = STORAGE_FLOAT32;
        tensors[i].dims = 1;
        tensors[i].shape[0] = tensors[i].count = count;
    }
    size_t size;
    char *header = safetensors_header(tensors, count > 0 ? 3 : 0, metadata, &size);
    char *path = format_string("%s/optimizer-%05d-of-%05d.safetensors", directory, rank, world);
    FILE *file = fopen(path, "wb");
    fwrite(header, 1, size, file);
    float *part = host_allocate((size_t)count, sizeof(float), "a test");
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < range_count; j++) {
            const size_t bytes = (size_t)ranges[j].count * sizeof(float);
            state->device->download(state->device, part, (const float *)buffers[i].memory + ranges[j].first,
                                    bytes);
            fwrite(part, 1, bytes, file);
        }
    check(fclose(file) == 0, "cannot write %s", path);
    free(part);
    free(path);
    free(header);
}

// Writes one optimizer file with the elements [first, first + count).
static void write_optimizer_part(const char *directory, int rank, int world, const Fixture *model,
                                 int64_t first, int64_t count) {
    const ElementRange range = {first, count};
    char first_text[32], count_text[32], total_text[32];
    sprintf(first_text, "%ld", (long)first);
    sprintf(count_text, "%ld", (long)count);
    sprintf(total_text, "%ld", (long)model->table.elements);
    const char *const metadata[] = {"first", first_text, "count", count_text, "total", total_text, NULL};
    write_optimizer_ranges(directory, rank, world, model, &range, 1, metadata);
}

static void test_split_optimizer(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_BFLOAT16, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir);
    char *whole = step_file(out_dir, 1, file_names[2]);
    const int64_t total = model->table.elements;
    write_optimizer_part(directory, 2, 3, model, 0, 777); // in any order
    write_optimizer_part(directory, 0, 3, model, 777, 223);
    write_optimizer_part(directory, 1, 3, model, 1000, total - 1000);
    write_manifest(directory);
    Fixture *loaded = fixture_create(STORAGE_BFLOAT16, small_shape);
    check_refused(directory, NULL, loaded, "manifest.json lists optimizer files of ");
    check(unlink(whole) == 0, "cannot remove %s", whole);
    write_manifest(directory);
    check_loads(out_dir, model);

    static const struct {
        int64_t first, count;
        const char *message;
    } cases[] = {{777, 224, "do not fit together: one begins at element 1000, not 1001"},
                 {777, 222, "do not fit together: one begins at element 1000, not 999"},
                 {0, 777, "do not fit together: one begins at element 0, not 777"},
                 {778, 222, "do not fit together: one begins at element 778, not 777"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_optimizer_part(directory, 0, 3, model, cases[i].first, cases[i].count);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, cases[i].message);
    }
    write_optimizer_part(directory, 0, 3, model, 777, 223);
    write_optimizer_part(directory, 1, 3, model, 1000, total - 1001);
    write_manifest(directory);
    check_refused(directory, NULL, loaded, "end at element ");
    char *part = step_file(out_dir, 1, "optimizer-00001-of-00003.safetensors");
    check(unlink(part) == 0, "cannot remove %s", part);
    write_manifest(directory);
    check_refused(directory, NULL, loaded, "manifest.json lists no optimizer-00001-of-00003.safetensors");
    fixture_destroy(model);
    fixture_destroy(loaded);
    free(part);
    free(whole);
    free(directory);
    free(out_dir);
}

// Wrong metadata of the second of three files, which has 30 elements from 120 on and 20 from 100 on.
static const struct {
    const char *first, *count, *message;
} bad_ranges[] = {{"120,100", "30", "has more of \"first\" or of \"count\""},
                  {"120", "30,20", "has more of \"first\" or of \"count\""},
                  {"120,100,", "30,20", "is not of whole numbers"},
                  {"120,100", "30,20x", "is not of whole numbers"},
                  {"120,,100", "30,10,10", "is not of whole numbers"},
                  {"-120,100", "30,20", "is not of whole numbers"},
                  {" 120,100", "30,20", "is not of whole numbers"},
                  {"120,99999999999999999999", "30,20", "is not of whole numbers"},
                  {"120,9223372036854775807", "30,20", "beyond its total of"},
                  {"120,100", "30,9223372036854775807", "beyond its total of"},
                  {"121,100", "30,20", "do not fit together: one begins at element 121, not 120"},
                  {"119,100", "30,20", "do not fit together: one begins at element 119, not 120"},
                  {"120,100", "20,30", "do not fit together: one begins at element 120, not 130"},
                  {"120,100", "30,21", "with shape [50]; this model needs [51]"},
                  {"120,100", "30,19", "with shape [50]; this model needs [49]"},
                  {"120,100", NULL, "has no \"count\""},
                  {"", "", "has 3 tensors, not 0"}};

static const char *const bad_totals[][2] = {{"", "has no whole number \"total\""},
                                            {"x", "has no whole number \"total\""},
                                            {"12,", "has no whole number \"total\""},
                                            {"7", "is of 7 elements, this model has"}};

// Files with several ranges of elements each are loaded; wrong metadata is refused.
static void test_scattered_optimizer(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape),
            *loaded = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir),
         *whole = step_file(out_dir, 1, file_names[2]);
    check(unlink(whole) == 0, "cannot remove %s", whole);
    const long total = (long)model->table.elements, rest = total - 150;
    char *rest_text = format_string("100,%ld", rest), *total_text = format_string("%ld", total);
    const ElementRange first[] = {{0, 100}, {150, rest}}, second[] = {{120, 30}, {100, 20}};
    const char *const first_good[] = {"first", "0,150", "count", rest_text, "total", total_text, NULL};
    const char *const second_good[] = {"first", "120,100", "count", "30,20", "total", total_text, NULL};
    const char *const empty[] = {"first", "", "count", "", "total", total_text, NULL};
    write_optimizer_ranges(directory, 0, 3, model, first, 2, first_good);
    write_optimizer_ranges(directory, 1, 3, model, second, 2, second_good);
    write_optimizer_ranges(directory, 2, 3, model, second, 0, empty);
    write_manifest(directory);
    check_loads(out_dir, model);

    for (size_t i = 0; i < COUNT_OF(bad_ranges); i++) {
        const char *const metadata[] = {"total",
                                        total_text,
                                        "first",
                                        bad_ranges[i].first,
                                        bad_ranges[i].count ? "count" : NULL,
                                        bad_ranges[i].count,
                                        NULL};
        write_optimizer_ranges(directory, 1, 3, model, second, 2, metadata);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, bad_ranges[i].message);
    }
    for (size_t i = 0; i < COUNT_OF(bad_totals); i++) {
        const char *const metadata[] = {"first", "120,100",        "count", "30,20",
                                        "total", bad_totals[i][0], NULL};
        write_optimizer_ranges(directory, 1, 3, model, second, 2, metadata);
        write_manifest(directory);
        check_refused(directory, NULL, loaded, bad_totals[i][1]);
    }
    fixture_destroy(model);
    fixture_destroy(loaded);
    free(rest_text);
    free(total_text);
    free(whole);
    free(directory);
    free(out_dir);
}

void test_optimizer_file(void) {
    test_run("checkpoint: optimizer in several files", test_split_optimizer, NULL);
    test_run("checkpoint: optimizer files of scattered elements", test_scattered_optimizer, NULL);
}
