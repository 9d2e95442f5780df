// The safetensors format: files that are written can be read, malformed ones are refused.
#include "test.h"

#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TENSOR(name, type, shape, offsets)                                                                   \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A                    TENSOR("a", "F32", "[2,3]", "[0,24]")
#define B                    TENSOR("b", "BF16", "[4]", "[24,32]")
#define C_OF(shape, offsets) "{" A "," TENSOR("c", "F32", shape, offsets) "}"

static void write_bytes(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) fatal("cannot write %s", path);
}

static void write_safetensors(const char *path, const char *header, uint64_t length, size_t data_bytes) {
    FILE *file = fopen(path, "wb");
    for (int i = 0; i < 8; i++) fputc((int)(length >> (8 * i) & 0xff), file);
    fputs(header, file);
    for (size_t i = 0; i < data_bytes; i++) fputc((int)random_below(256), file);
    fclose(file);
}

static const struct {
    const char *header;
    int64_t length; // the header's length that the file claims; 0: the true one
    size_t data_bytes;
    const char *reason;
} malformed[] = {
    {"{" A "," B "}", (int64_t)1 << 62, 32, "header's length of 4611686018427387904 bytes is not from 2 to"},
    {"{" A "," B "}", -1, 32, "header's length of 18446744073709551615 bytes is not from 2 to"},
    {"{" A "," B "}", 100000001, 32, "header's length of 100000001 bytes is not from 2 to"},
    {"{" A "," B "}", 1, 32, "header's length of 1 bytes is not from 2 to"},
    {"{" A "," B "}", 5000, 32, "header's length of 5000 bytes is more than the file"},
    {"{" A "," B "}", 50, 32, "is not a JSON object"},
    {"{" A "," B, 0, 32, "is not a JSON object"},
    {"[" A "]", 0, 32, "is not a JSON object"},
    {" {" A "," B "}", 0, 32, "is not a JSON object"},
    {"{" A "," B "} x", 0, 32, "is not a JSON object"},
    {"{" A "," B "}", 0, 33, "the last 1 bytes of data belong to no tensor"},
    {"{" A "," B "}", 0, 31, "b: its data ends at 32, but the file has 31 bytes of data"},
    {"{" A "," A "}", 0, 24, "a: the name stands there twice"},
    {"{" A "," TENSOR("b", "BF16", "[4]", "[26,34]") "}", 0, 34,
     "b: the 2 bytes of data before it belong to no"},
    {"{" A "," TENSOR("b", "BF16", "[4]", "[22,30]") "}", 0, 30, "b: its data overlaps that of a"},
    {"{" TENSOR("b", "BF16", "[4]", "[8,16]") "}", 0, 16, "b: the 8 bytes of data before it belong to no"},
    {C_OF("[2]", "[32,24]"), 0, 32, "c: its data begins at 32 and ends before, at 24"},
    {C_OF("[3]", "[24,32]"), 0, 32, "c: it has 8 bytes of data, but its type and shape make 12"},
    {C_OF("[2]", "[24.5,32]"), 0, 32, "c: its data_offsets are not two whole numbers"},
    {C_OF("[2]", "[-8,0]"), 0, 32, "c: its data_offsets are not two whole numbers"},
    {C_OF("[2]", "[24,32,40]"), 0, 32, "c: its data_offsets are not two whole numbers"},
    {C_OF("[2]", "[24,1e300]"), 0, 32, "c: its data_offsets are not two whole numbers"},
    {C_OF("[2]", "\"24\""), 0, 32, "c: its data_offsets are not two whole numbers"},
    {C_OF("[]", "[24,28]"), 0, 28, "c: it has 0 dimensions, not 1 or 2"},
    {C_OF("[1,1,2]", "[24,32]"), 0, 32, "c: it has 3 dimensions, not 1 or 2"},
    {C_OF("2", "[24,32]"), 0, 32, "c: its shape is not a list"},
    {C_OF("[0]", "[24,24]"), 0, 24, "c: its shape is not of whole numbers above zero"},
    {C_OF("[-2]", "[24,32]"), 0, 32, "c: its shape is not of whole numbers above zero"},
    {C_OF("[\"2\"]", "[24,32]"), 0, 32, "c: its shape is not of whole numbers above zero"},
    {C_OF("[4294967296,4294967296]", "[24,24]"), 0, 24, "c: its shape overflows 64 bits"},
    {C_OF("[2147483648,4294967297]", "[24,32]"), 0, 32, "c: its shape overflows 64 bits"},
    {C_OF("[2147483648,4294967295]", "[24,32]"), 0, 32, "c: its size overflows 64 bits"},
    {"{" A "," TENSOR("d", "I64", "[1]", "[24,32]") "}", 0, 32,
     "d: its dtype \"I64\" is none of F64, F32, BF16"},
    {"{" A "," TENSOR("d", "f32", "[2]", "[24,32]") "}", 0, 32,
     "d: its dtype \"f32\" is none of F64, F32, BF16"},
    {"{\"d\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,8]}}", 0, 8, "d: its dtype is not a string"},
    {"{\"d\":{\"dtype\":\"F64\",\"shape\":[1]}}", 0, 8, "d: it does not have dtype, shape and data_offsets"},
    {"{\"d\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8],\"dtype\":\"F32\"}}", 0, 8,
     "d: it does not have dtype, shape and data_offsets"},
    {"{\"d\":[]}", 0, 0, "d: it does not have dtype, shape and data_offsets"},
    {"{\"d\":null}", 0, 0, "d: it does not have dtype, shape and data_offsets"},
    {"{\"__metadata__\":{\"a\":1}," A "}", 0, 24, "__metadata__ is not an object of strings"},
    {"{\"__metadata__\":[\"a\"]," A "}", 0, 24, "__metadata__ is not an object of strings"},
    {"{\"__metadata__\":{},\"__metadata__\":{}," A "}", 0, 24, "__metadata__ stands there twice"},
    {"{" TENSOR("a234567890b234567890c234567890d234567890e234567890f234567890g234567890h234567890i2345678"
                "90j23456",
                "F32", "[6]", "[0,24]") "}",
     0, 24, "has more than 95 bytes"},
};

static void test_hostile_safetensors(void *unused) {
    (void)unused;
    char *path = format_string("%s/t.safetensors", test_directory());
    for (size_t i = 0; i < COUNT_OF(malformed); i++) {
        write_safetensors(path, malformed[i].header,
                          malformed[i].length ? (uint64_t)malformed[i].length : strlen(malformed[i].header),
                          malformed[i].data_bytes);
        SafetensorsFile file;
        Reason reason = {""};
        const bool opened = safetensors_open(&file, path, &reason);
        check(!opened && strstr(reason.text, malformed[i].reason), "%s: says \"%s\", not \"%s\"",
              malformed[i].header, reason.text, malformed[i].reason);
        if (opened) safetensors_close(&file);
    }
    free(path);
}

// JSON nested so deeply that it could overflow the stack, files of a few bytes, and paths that are no file.
static void test_strange_safetensors(void *unused) {
    (void)unused;
    const char *directory = test_directory();
    char *path = format_string("%s/t.safetensors", directory);
    SafetensorsFile file;
    Reason reason = {""};
    check(!safetensors_open(&file, path, &reason) && strstr(reason.text, "No such file"), "%s", reason.text);
    check(!safetensors_open(&file, directory, &reason) && strstr(reason.text, "is not a file"), "%s",
          reason.text);
    for (size_t bytes = 0; bytes < 8; bytes++) {
        write_bytes(path, "\2\0\0\0\0\0\0\0", bytes);
        check(!safetensors_open(&file, path, &reason) && strstr(reason.text, "fewer than the 8"), "%s",
              reason.text);
    }
    const int depth = 3000000;
    char *deep = host_allocate((size_t)depth + 6, 1, "a test");
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', (size_t)depth);
    write_safetensors(path, deep, (uint64_t)depth + 5, 0);
    check(!safetensors_open(&file, path, &reason) && strstr(reason.text, "not a JSON object"), "%s",
          reason.text);
    free(deep);
    free(path);
}

// A good file with random bytes changed is refused, or all its tensors lie inside the file.
static void test_random_safetensors(void *unused) {
    (void)unused;
    char *path = format_string("%s/t.safetensors", test_directory());
    const char *good = "{\"__metadata__\":{\"format\":\"pt\"}," A "," B "}   ";
    for (int i = 0; i < 3000; i++) {
        char *header = format_string("%s", good);
        for (uint64_t changes = 1 + random_below(3); changes > 0; changes--)
            header[random_below(strlen(good))] = (char)(1 + random_below(127));
        write_safetensors(path, header, strlen(good), 32);
        SafetensorsFile file;
        Reason reason = {""};
        if (safetensors_open(&file, path, &reason)) {
            for (int j = 0; j < file.count; j++) {
                char data[32];
                check(file.tensors[j].bytes <= 32 &&
                          safetensors_read(&file, &file.tensors[j], 0, data, file.tensors[j].bytes),
                      "%s: tensor %d cannot be read", header, j);
            }
            safetensors_close(&file);
        } else {
            check(reason.text[0] != 0, "%s: refused without a reason", header);
        }
        free(header);
    }
    free(path);
}

static void test_round_trip(void *unused) {
    (void)unused;
    char *path = format_string("%s/t.safetensors", test_directory());
    Tensor tensors[] = {
        {.name = "odd \"name\"", .type = STORAGE_BFLOAT16, .dims = 2, .shape = {3, 5}, .count = 15},
        {.name = "second", .type = STORAGE_FLOAT64, .dims = 1, .shape = {7}, .count = 7}};
    size_t size;
    char *header = safetensors_header(tensors, 2, (const char *const[]){"key", "value", NULL}, &size);
    check(size % 8 == 0, "the header has %zu bytes", size);
    char contents[30 + 56], read[30 + 56];
    for (size_t i = 0; i < sizeof(contents); i++) contents[i] = (char)random_below(256);
    char *whole = host_allocate(size + sizeof(contents), 1, "a test");
    memcpy(whole, header, size);
    memcpy(whole + size, contents, sizeof(contents));
    write_bytes(path, whole, size + sizeof(contents));
    SafetensorsFile file;
    Reason reason = {""};
    if (safetensors_open(&file, path, &reason)) {
        check(file.count == 2 && !strcmp(file.metadata, "{\"key\":\"value\"}"), "metadata %s", file.metadata);
        for (size_t i = 0; i < 2; i++) {
            const Tensor *tensor = safetensors_find(&file, tensors[i].name);
            check(tensor && !memcmp(tensor, &tensors[i], sizeof(Tensor)), "%s is not as written",
                  tensors[i].name);
            if (!tensor) continue;
            check(safetensors_read(&file, tensor, 3, read, tensor->bytes - 3) &&
                      !memcmp(read, contents + tensor->offset + 3, tensor->bytes - 3),
                  "%s does not come back", tensor->name);
            check(!safetensors_read(&file, tensor, 1, read, tensor->bytes), "read beyond %s", tensor->name);
            check(!safetensors_read(&file, tensor, tensor->bytes + 1, read, 0), "read from beyond %s",
                  tensor->name);
            check(!safetensors_read(&file, tensor, 8, read, SIZE_MAX - 4), "read around %s", tensor->name);
        }
        check(!safetensors_find(&file, "third"), "found what is not there");
        check(truncate(path, (off_t)size + 80) == 0, "cannot truncate %s", path);
        check(!safetensors_read(&file, safetensors_find(&file, "second"), 0, read, 56), "read what is gone");
        safetensors_close(&file);
    } else {
        check(false, "%s", reason.text);
    }
    free(whole);
    free(header);
    free(path);
}

void test_safetensors(void) {
    test_run("safetensors: round trip", test_round_trip, NULL);
    test_run("safetensors: malformed files", test_hostile_safetensors, NULL);
    test_run("safetensors: strange files", test_strange_safetensors, NULL);
    test_run("safetensors: random changes", test_random_safetensors, NULL);
}
