// Damaged checkpoints: each is refused with its name, and with "latest" the good one before it is opened.
#include "checkpoint_fixture.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The damaged checkpoint is fatal if named by --resume; "latest" warns of it and opens the one before.
static void check_damage_found(const char *out_dir, const char *file_name) {
    char *newest = format_string("%s/step_00000002", out_dir);
    char *named = format_string("the checkpoint %s is damaged: ", newest);
    check_refused(newest, NULL, NULL, "not a good checkpoint: ");
    if (strcmp(file_name, "manifest.json")) check_refused(newest, NULL, NULL, file_name);
    check_latest(out_dir, 1, named);
    free(named);
    free(newest);
}

static void test_damage(void *argument) {
    const char *file_name = (const char *)argument;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_BFLOAT16, small_shape);
    save_step(out_dir, model, 1);
    fixture_refill(model);
    save_step(out_dir, model, 2);
    char *path = step_file(out_dir, 2, file_name);
    size_t size;
    char *bytes = read_all(path, &size);
    for (int i = 0; i < 8; i++) { // flip one bit
        const size_t place = i == 0 ? 0 : i == 1 ? size - 1 : random_below(size);
        const char bit = (char)(1 << random_below(8));
        bytes[place] ^= bit;
        write_all(path, bytes, size);
        check_damage_found(out_dir, file_name);
        bytes[place] ^= bit;
    }
    for (int i = 0; i < 4; i++) { // truncate
        write_all(path, bytes, i == 0 ? 0 : i == 1 ? size - 1 : random_below(size));
        check_damage_found(out_dir, file_name);
    }
    write_all(path, bytes, size + 1); // append a NUL
    check_damage_found(out_dir, file_name);
    check(unlink(path) == 0, "cannot remove %s", path);
    check_damage_found(out_dir, file_name);
    write_all(path, bytes, size);
    check_latest(out_dir, 2, NULL);
    free(bytes);
    free(path);
    fixture_destroy(model);
    free(out_dir);
}

static void check_one_damage(const char *out_dir, const char *path, const char *bytes, size_t size) {
    write_all(path, bytes, size);
    check_latest(out_dir, 1, "the checkpoint ");
}

static size_t header_bytes(const char *file_name, const char *bytes, size_t size) {
    uint64_t length;
    memcpy(&length, bytes, sizeof(length));
    return strstr(file_name, ".safetensors") ? (size_t)length + sizeof(length) : size;
}

// Damages each byte of the JSON files and of the headers (in the manifest, which no hash covers, to every
// value), some bytes of the data, and truncates every file at many places. Each time the good checkpoint
// before is opened.
static void test_every_byte(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    save_step(out_dir, model, 2);
    for (size_t i = 0; i < COUNT_OF(file_names); i++) {
        char *path = step_file(out_dir, 2, file_names[i]);
        size_t size;
        char *bytes = read_all(path, &size);
        const size_t header = header_bytes(file_names[i], bytes, size);
        const int ways = strcmp(file_names[i], "manifest.json") ? 1 : 8;
        for (size_t place = 0; place < size; place += place < header ? 1 : 1 + random_below(2000))
            for (int way = 0; way < ways; way++) {
                const char bit = (char)(1 << (ways == 8 ? (uint64_t)way : random_below(8)));
                bytes[place] ^= bit;
                check_one_damage(out_dir, path, bytes, size);
                bytes[place] ^= bit;
            }
        for (size_t length = 0; length < size; length += 1 + random_below(1 + size / 50))
            check_one_damage(out_dir, path, bytes, length);
        write_all(path, bytes, size);
        free(bytes);
        free(path);
    }
    check_latest(out_dir, 2, NULL);
    fixture_destroy(model);
    free(out_dir);
}

static void test_nothing_to_resume(void *unused) {
    (void)unused;
    char *out_dir = new_directory();
    char *missing = format_string("%s/none", out_dir);
    check_refused("latest", NULL, NULL, "--resume latest looks for checkpoints under --out");
    check_refused("latest", out_dir, NULL, "there is no checkpoint (step_NNNNNNNN) in --out");
    check_refused("latest", missing, NULL, "there is no checkpoint (step_NNNNNNNN) in --out");
    check_refused(missing, out_dir, NULL, "manifest.json cannot be read: No such file");
    check_refused(out_dir, out_dir, NULL, "manifest.json cannot be read: No such file");
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 5);
    char *path = step_file(out_dir, 5, "trainer.json");
    check(truncate(path, 10) == 0, "cannot truncate %s", path);
    check_refused("latest", out_dir, NULL, "there is no good checkpoint (step_NNNNNNNN) in --out");
    fixture_destroy(model);
    free(path);
    free(missing);
    free(out_dir);
}

// Files of another format_version, and a manifest that does not list all files.
static void test_other_formats(void *unused) {
    (void)unused;
    static const struct {
        const char *file, *from, *to, *message;
    } cases[] = {
        {"manifest.json", "\"format_version\":\t1", "\"format_version\":\t2",
         "has format version 2; this program"},
        {"manifest.json", "\"format_version\"", "\"format\"", "manifest.json has no format_version"},
        {"manifest.json", "\"files\"", "\"fails\"", "manifest.json has no list of files"},
        {"manifest.json", "\"bytes\"", "\"bites\"", "has an entry without name, bytes and xxh3_128"},
        {"manifest.json", "\"config.json\"", "\"../config.json\"", "which is not in this directory"},
        {"manifest.json", "\t", " ", "manifest.json is not as it was written"},
    };
    char *out_dir = new_directory();
    Fixture *model = fixture_create(STORAGE_FLOAT32, small_shape);
    save_step(out_dir, model, 1);
    char *directory = format_string("%s/step_00000001", out_dir);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *path = step_file(out_dir, 1, cases[i].file);
        size_t size;
        char *text = read_all(path, &size), *place = strstr(text, cases[i].from);
        check(place != NULL, "%s has no %s", cases[i].file, cases[i].from);
        if (place) {
            char *changed = format_string("%.*s%s%s", (int)(place - text), text, cases[i].to,
                                          place + strlen(cases[i].from));
            write_all(path, changed, strlen(changed));
            check_refused(directory, NULL, NULL, cases[i].message);
            write_all(path, text, size);
            free(changed);
        }
        free(text);
        free(path);
    }
    fixture_destroy(model);
    free(directory);
    free(out_dir);
}

void test_checkpoint_damage(void) {
    for (size_t i = 0; i < COUNT_OF(file_names); i++) {
        char *name = format_string("checkpoint: damage to %s", file_names[i]);
        test_run(name, test_damage, (void *)file_names[i]);
        free(name);
    }
    test_run("checkpoint: damage to every byte", test_every_byte, NULL);
    test_run("checkpoint: nothing to resume", test_nothing_to_resume, NULL);
    test_run("checkpoint: other formats", test_other_formats, NULL);
}
