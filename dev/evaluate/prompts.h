// Prompts that ask for something hidden far back in a context, token by token.
//
// The passkey prompt of N tokens (arXiv 2605.06554, appendix F, which does not give its text; this is ours):
//
//   filler … \nthe pass key is 7. remember it. 7 is the pass key.\n … filler \nthe pass key is
//
// and the token that should follow is the digit's. Filler is random letters (a-z, A-Z), without digits, so
// that there is one digit to find. At depth D % the sentences begin after D % (rounded) of the filler.
//
// The copy prompt of N tokens is filler, of which a piece of 32 tokens is begun again at the end: 16 tokens
// as a cue, then the other 16, each of which the model should have predicted. At depth D % the piece begins
// at D % (rounded) of the places at which it can.
#pragma once
#include "base/common.h"

enum { DIGITS = 10, COPY_CUE = 16, COPY_ANSWER = 16 };

typedef struct {
    int32_t *list;
    int64_t count;
} Tokens;

// What prompts are made of.
typedef struct {
    Tokens filler;           // from which pieces are cut
    Tokens needles[DIGITS];  // the sentences with each digit
    Tokens question;         // the prompt's end
    int32_t answers[DIGITS]; // the tokens of the digits after it
} PromptParts;

// Of a model whose tokens are bytes; the filler follows from the seed, and suffices for prompts of `longest`.
PromptParts prompt_parts_of_bytes(uint64_t seed, int64_t longest);

// Of a file that passkey_prompts.py made with a tokenizer: JSON {"format": "passkey prompts", "version": 1,
// "filler": […], "needles": [[…], … ten], "question": […], "answers": [ten]}. Ends the process with one line
// about anything else, about tokens beyond the vocabulary and about filler that is not enough for `longest`.
PromptParts prompt_parts_read(const char *path, int64_t vocab_size, int64_t longest);
void prompt_parts_free(PromptParts *parts);

typedef enum { TASK_PASSKEY, TASK_COPY, TASKS } Task;
extern const char *const task_names[]; // ends with NULL

// The shortest prompt that has room for the task.
int64_t prompt_shortest(const PromptParts *parts, Task task);

typedef struct {
    int64_t hidden; // the position at which the sentences, or the piece to copy, begin
    int64_t asked;  // the first position whose next token is to be predicted; the others are those after it
    int64_t count;  // of those positions
    int32_t expected[COPY_ANSWER]; // [count]: what they should predict
} Question;

// Fills tokens[length], and says what is asked. Prompts of the same key have the same filler; with passkey,
// `digit` is the one that is hidden.
Question prompt_make(const PromptParts *parts, Task task, int32_t *tokens, int64_t length, int64_t depth,
                     int digit, uint64_t key);
