// The settings of Lighthouse attention: what is refused, with which message, and what devices can do.
#include "dev/test/selection/tests.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

typedef enum { LEVELS, POOL, TOPK, TILE, SEQ_LEN, FIELDS } Field;
typedef struct {
    int64_t values[FIELDS];
} Values;

static bool valid(const Values *v, Reason *reason) {
    const LighthouseSettings settings = {v->values[LEVELS], v->values[POOL], v->values[TOPK],
                                         v->values[TILE]};
    return lighthouse_valid(&settings, v->values[SEQ_LEN], reason);
}

// Whether the number stands in the text, not as a part of another one.
static bool has_number(const char *text, int64_t number) {
    char *digits = format_string("%ld", (long)number);
    const size_t length = strlen(digits);
    const char *found = strstr(text, digits);
    while (found && ((found > text && isdigit(found[-1])) || isdigit(found[length])))
        found = strstr(found + 1, digits);
    free(digits);
    return found != NULL;
}

// Every rule: settings that break it, what the message says, and values of one option, named in the message,
// that mend it.
static const struct {
    Values refused;
    const char *rule;
    Field field;
    int64_t suggested[2]; // 0: no other one
} refusals[] = {
    {{{3, 3, 64, 16, 1024}}, "--pool 3 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, 1, 64, 16, 1024}}, "--pool 1 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, 0, 64, 16, 1024}}, "--pool 0 must be a power of two, at least 2", POOL, {2, 4}},
    {{{3, -4, 64, 16, 1024}}, "--pool -4 must be a power of two, at least 2", POOL, {2, 4}},
    {{{1, 2, 64, 16, 1024}}, "--levels 1 must be at least 2", LEVELS, {2, 0}},
    {{{3, 4, 112, 7, 1792}}, "--topk-tile 7 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 240, 9, 3840}}, "--topk-tile 9 must be even and at least twice --pool 4", TILE, {10, 0}},
    {{{3, 4, 64, 6, 1024}}, "--topk-tile 6 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 64, 0, 1024}}, "--topk-tile 0 must be even and at least twice --pool 4", TILE, {8, 0}},
    {{{3, 4, 40, 16, 1024}}, "--topk 40 must be a multiple of --topk-tile 16", TOPK, {32, 64}},
    {{{3, 4, 16, 16, 250}}, "--levels 3 - 1, 16: 256 does", SEQ_LEN, {256, 0}},
    {{{3, 4, 16, 16, 259}}, "--seq-len 259 must be a multiple of --pool 4", SEQ_LEN, {256, 272}},
    {{{3, 4, 48, 16, 1030}}, "--seq-len 1030 must be a multiple of --pool 4", SEQ_LEN, {1008, 1056}},
    {{{3, 4, 40, 16, 3072}}, "--topk 40 must be a multiple of --topk-tile 16", TOPK, {32, 48}},
    {{{3, 4, 0, 16, 1024}}, "--topk 0 must be a multiple of --topk-tile 16", TOPK, {16, 0}},
    {{{3, 4, 16, 16, 1030}},
     "--seq-len 1030 must be a multiple of --pool 4 to the power of --levels 3 - 1, 16",
     SEQ_LEN,
     {1024, 1040}},
    {{{3, 4, 48, 16, 1024}},
     "= 3 chunks must divide the coarsest level's 64 entries into equal parts",
     TOPK,
     {32, 64}},
    {{{3, 4, 128, 16, 1024}},
     "= 8 chunks must divide the coarsest level's 64 entries into equal parts of at least 16",
     TOPK,
     {64, 0}},
    {{{3, 4, 48, 16, 192}}, "coarsest level has 12 entries, fewer than --topk-tile 16", LEVELS, {2, 0}},
    {{{9, 4, 16, 16, 1024}},
     "--pool 4 to the power of --levels 9 - 1 is more than --seq-len 1024",
     LEVELS,
     {4, 0}},
    {{{70, 2, 16, 16, 1024}}, "--levels 70", LEVELS, {7, 0}},
};

void bad_settings_are_refused(void *unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT_OF(refusals); i++) {
        Reason reason, other;
        check(!valid(&refusals[i].refused, &reason), "accepted, but should say: %s", refusals[i].rule);
        check(strstr(reason.text, refusals[i].rule) != NULL, "should say \"%s\", says: %s", refusals[i].rule,
              reason.text);
        for (int j = 0; j < 2 && refusals[i].suggested[j] > 0; j++) {
            Values mended = refusals[i].refused;
            mended.values[refusals[i].field] = refusals[i].suggested[j];
            check(has_number(reason.text, refusals[i].suggested[j]) || refusals[i].field == LEVELS,
                  "should suggest %ld, says: %s", (long)refusals[i].suggested[j], reason.text);
            check(valid(&mended, &other), "%ld was suggested, but: %s", (long)refusals[i].suggested[j],
                  other.text);
        }
    }
}

// The rules as design and paper state them.
static bool follows_rules(const Values *v) {
    const int64_t levels = v->values[LEVELS], pool = v->values[POOL], tile = v->values[TILE];
    if (pool < 2 || levels < 2 || tile < 2 * pool || v->values[TOPK] < tile) return false;
    if ((pool & (pool - 1)) != 0 || tile % 2 != 0 || v->values[TOPK] % tile != 0) return false;
    int64_t coarsest = v->values[SEQ_LEN];
    for (int64_t level = 1; level < levels; level++) {
        if (coarsest % pool != 0) return false;
        coarsest /= pool;
    }
    const int64_t chunks = v->values[TOPK] / tile;
    return coarsest % chunks == 0 && coarsest / chunks >= tile;
}

void settings_are_judged_by_the_rules(void *unused) {
    (void)unused;
    int accepted = 0;
    for (int i = 0; i < 20000; i++) {
        const int64_t tile = between(1, 12);
        const Values v = {{between(1, 4), between(0, 5), tile * between(0, 4) + (between(0, 9) == 0), tile,
                           between(1, 60) * between(1, 16)}};
        Reason reason = {""};
        const bool verdict = valid(&v, &reason);
        check(verdict == follows_rules(&v), "levels %ld, pool %ld, topk %ld, tile %ld, %ld tokens: %s",
              (long)v.values[LEVELS], (long)v.values[POOL], (long)v.values[TOPK], (long)v.values[TILE],
              (long)v.values[SEQ_LEN], verdict ? "accepted" : reason.text);
        check(verdict || reason.text[0], "refused without a reason");
        accepted += verdict;
    }
    check(accepted > 100, "only %d of the settings tried are valid", accepted);
}

// Checks that the device refuses the shape for a reason that names these numbers.
static void check_unsupported(Device *device, const LighthouseShape *shape, int64_t given, int64_t most) {
    Reason reason;
    check(!device->ops->selection.supported(shape, &reason, device->stream),
          "%d levels with picks of %d are accepted", shape->levels, shape->tile);
    check(has_number(reason.text, given) && has_number(reason.text, most) && !strchr(reason.text, '\n'),
          "should name %ld and %ld in one line, says: %s", (long)given, (long)most, reason.text);
}

void device_knows_its_limits(void *argument) {
    Device *device = argument;
    const bool is_cuda = !strcmp(device->kind, "cuda");
    const int most_levels = is_cuda ? 8 : 64;
    for (int levels = 2; levels <= 8; levels++) {
        const LighthouseShape shape = shape_with(levels, 128);
        check(is_supported(device, &shape), "%d levels are refused", levels);
    }
    LighthouseShape shape = shape_with(3, 128);
    shape.levels = most_levels + 1;
    check_unsupported(device, &shape, most_levels + 1, most_levels);
    if (!is_cuda) return;
    for (int levels = 2; levels <= 5; levels += 3) {
        int tile = 1 << 20; // more than the shared memory of any GPU takes
        const LighthouseShape large = shape_with(levels, tile);
        while (tile > 2 && (shape = shape_with(levels, tile), !is_supported(device, &shape))) tile -= 2;
        check_unsupported(device, &large, large.tile, tile);
        check(tile >= 1024, "a tile of %d is all that %d levels can have", tile, levels);
    }
}
