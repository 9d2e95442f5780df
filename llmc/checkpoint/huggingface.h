// config.json: the model's shape as Hugging Face's LlamaConfig says it. (Hugging Face's names of the tensors
// are in the parameter table, llmc/model/parameters.c.)
#pragma once
#include "base/reason.h"
#include "base/storage.h"
#include "model/config.h"

struct cJSON;

#define CONFIG_FILE "config.json"

// What config.json says of a model in that storage type, for the caller to delete. Its special tokens are the
// separator of documents, null if that is below zero.
struct cJSON *huggingface_config(const ModelConfig *config, StorageType storage, int64_t seq_len,
                                 int64_t separator_token);

// Reads the shape (rope_theta and norm_eps aside, which stay zero) and the storage type back.
bool huggingface_read_config(const char *directory, ModelConfig *config, StorageType *storage,
                             Reason *reason);
