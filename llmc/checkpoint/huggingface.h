// config.json: the model's shape in the format of Hugging Face's LlamaConfig. (Hugging Face's tensor names
// are in the parameter table, llmc/model/parameters.c.)
#pragma once
#include "base/reason.h"
#include "base/storage.h"
#include "model/config.h"

struct cJSON;

#define CONFIG_FILE "config.json"

// The content of config.json for this model and storage type; the caller deletes it. Its bos and eos tokens
// are separator_token (null if that is below 0), its max_position_embeddings is seq_len.
struct cJSON *huggingface_config(const ModelConfig *config, StorageType storage, int64_t seq_len,
                                 int64_t separator_token);

// Reads the shape and the storage type from a directory's config.json. rope_theta and norm_eps are not read;
// they become 0. Fails softly.
bool huggingface_read_config(const char *directory, ModelConfig *config, StorageType *storage,
                             Reason *reason);
