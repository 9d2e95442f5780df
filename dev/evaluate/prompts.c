#include "prompts.h"

#include "base/files.h"
#include "base/json.h"
#include "base/random.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *const task_names[] = {"passkey", "copy", NULL};

// --- of bytes -------------------------------------------------------------------------------------------

static Tokens tokens_of_bytes(const char *text) {
    const size_t count = strlen(text);
    const Tokens tokens = {host_allocate(count, sizeof(int32_t), "a prompt"), (int64_t)count};
    for (size_t i = 0; i < count; i++) tokens.list[i] = (unsigned char)text[i];
    return tokens;
}

PromptParts prompt_parts_of_bytes(uint64_t seed, int64_t longest) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    PromptParts parts = {.filler.count = max_i64(1 << 20, 2 * longest)};
    parts.filler.list = host_allocate((size_t)parts.filler.count, sizeof(int32_t), "filler");
    const uint64_t key = random_key(seed, "filler");
    for (int64_t i = 0; i < parts.filler.count; i++)
        parts.filler.list[i] = letters[random_u64(key, (uint64_t)i) % (sizeof(letters) - 1)];
    for (int digit = 0; digit < DIGITS; digit++) {
        char *sentences =
            format_string("\nthe pass key is %d. remember it. %d is the pass key.\n", digit, digit);
        parts.needles[digit] = tokens_of_bytes(sentences);
        parts.answers[digit] = '0' + digit;
        free(sentences);
    }
    parts.question = tokens_of_bytes("\nthe pass key is ");
    return parts;
}

// --- of a file ------------------------------------------------------------------------------------------

static Tokens read_tokens(const char *path, const char *name, const cJSON *array, int64_t vocab_size) {
    const int count = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : 0;
    if (count == 0) fatal("%s: \"%s\" is not a list of tokens", path, name);
    Tokens tokens = {host_allocate((size_t)count, sizeof(int32_t), "tokens of a file of prompts"), 0};
    const cJSON *item;
    cJSON_ArrayForEach (item, array) {
        int64_t token;
        if (!json_integer(item, &token) || token >= vocab_size)
            fatal("%s: \"%s\" has at %ld what is no token of a vocabulary of %ld", path, name,
                  (long)tokens.count, (long)vocab_size);
        tokens.list[tokens.count++] = (int32_t)token;
    }
    return tokens;
}

static cJSON *read_json(const char *path) {
    const size_t limit = (size_t)1 << 28;
    char *text = file_read_text(path, limit, NULL);
    if (!text) fatal("cannot read %s: %s", path, strerror(errno));
    cJSON *json = cJSON_Parse(text);
    free(text);
    const char *format = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "format"));
    int64_t version;
    if (!format || strcmp(format, "passkey prompts") != 0 ||
        !json_integer(cJSON_GetObjectItemCaseSensitive(json, "version"), &version) || version != 1)
        fatal("%s: not a file of prompts, version 1: make one with dev/evaluate/passkey_prompts.py", path);
    return json;
}

static void read_answers(PromptParts *parts, const char *path, const cJSON *json, int64_t vocab_size) {
    Tokens answers =
        read_tokens(path, "answers", cJSON_GetObjectItemCaseSensitive(json, "answers"), vocab_size);
    if (answers.count != DIGITS)
        fatal("%s: \"answers\" has %ld tokens, one for each of ten digits expected", path,
              (long)answers.count);
    for (int digit = 0; digit < DIGITS; digit++) {
        parts->answers[digit] = answers.list[digit];
        for (int other = 0; other < digit; other++)
            if (answers.list[other] == answers.list[digit])
                fatal("%s: \"answers\" has the same token for %d and %d", path, other, digit);
    }
    free(answers.list);
}

PromptParts prompt_parts_read(const char *path, int64_t vocab_size, int64_t longest) {
    PromptParts parts = {0};
    cJSON *json = read_json(path);
    parts.filler = read_tokens(path, "filler", cJSON_GetObjectItemCaseSensitive(json, "filler"), vocab_size);
    if (parts.filler.count < longest)
        fatal("%s: filler of %ld tokens is not enough for prompts of %ld: make the file with --tokens %ld or "
              "more",
              path, (long)parts.filler.count, (long)longest, (long)longest);
    const cJSON *needles = cJSON_GetObjectItemCaseSensitive(json, "needles");
    if (!cJSON_IsArray(needles) || cJSON_GetArraySize(needles) != DIGITS)
        fatal("%s: \"needles\" is not a list of ten lists of tokens", path);
    for (int digit = 0; digit < DIGITS; digit++)
        parts.needles[digit] = read_tokens(path, "needles", cJSON_GetArrayItem(needles, digit), vocab_size);
    parts.question =
        read_tokens(path, "question", cJSON_GetObjectItemCaseSensitive(json, "question"), vocab_size);
    read_answers(&parts, path, json, vocab_size);
    cJSON_Delete(json);
    return parts;
}

void prompt_parts_free(PromptParts *parts) {
    free(parts->filler.list);
    free(parts->question.list);
    for (int digit = 0; digit < DIGITS; digit++) free(parts->needles[digit].list);
    *parts = (PromptParts){0};
}

// --- a prompt -------------------------------------------------------------------------------------------

int64_t prompt_shortest(const PromptParts *parts, Task task) {
    if (task == TASK_COPY) return 2 * (COPY_CUE + COPY_ANSWER) - 1;
    int64_t needle = 0;
    for (int digit = 0; digit < DIGITS; digit++) needle = max_i64(needle, parts->needles[digit].count);
    return needle + parts->question.count;
}

// Appends tokens; returns the position behind them.
static int64_t append(int32_t *tokens, int64_t at, const int32_t *more, int64_t count) {
    memcpy(tokens + at, more, (size_t)count * sizeof(int32_t));
    return at + count;
}

// `count` tokens of filler, from a place that the key chooses.
static const int32_t *cut_filler(const PromptParts *parts, int64_t count, uint64_t key) {
    const uint64_t places = (uint64_t)(parts->filler.count - count) + 1;
    return parts->filler.list + random_u64(key, 0) % places;
}

static int64_t percent_of(int64_t count, int64_t percent) {
    return (count * percent + 50) / 100;
}

static Question make_passkey(const PromptParts *parts, int32_t *tokens, int64_t length, int64_t depth,
                             int digit, uint64_t key) {
    const Tokens *needle = &parts->needles[digit], *question = &parts->question;
    const int64_t count = length - needle->count - question->count, before = percent_of(count, depth);
    const int32_t *filler = cut_filler(parts, count, key);
    int64_t at = append(tokens, 0, filler, before);
    at = append(tokens, at, needle->list, needle->count);
    at = append(tokens, at, filler + before, count - before);
    append(tokens, at, question->list, question->count);
    return (Question){.hidden = before, .asked = length - 1, .count = 1, .expected = {parts->answers[digit]}};
}

static Question make_copy(const PromptParts *parts, int32_t *tokens, int64_t length, int64_t depth,
                          uint64_t key) {
    const int64_t piece = COPY_CUE + COPY_ANSWER;
    const int64_t count = length - (piece - 1); // the last token of the piece is asked, not given
    Question question = {
        .hidden = percent_of(count - piece, depth), .asked = length - COPY_ANSWER, .count = COPY_ANSWER};
    append(tokens, 0, cut_filler(parts, count, key), count);
    append(tokens, count, tokens + question.hidden, piece - 1);
    memcpy(question.expected, tokens + question.hidden + COPY_CUE, sizeof(question.expected));
    return question;
}

Question prompt_make(const PromptParts *parts, Task task, int32_t *tokens, int64_t length, int64_t depth,
                     int digit, uint64_t key) {
    return task == TASK_COPY ? make_copy(parts, tokens, length, depth, key)
                             : make_passkey(parts, tokens, length, depth, digit, key);
}
