// Fixtures of a whole step in float64, made by dev/reference/make_fixtures.py: numbers, tokens, and a tensor for
// each parameter.
#pragma once
#include "small_model.h"

#include "checkpoint/safetensors.h"

// Opens dev/reference/fixtures/NAME; a failure ends the test.
SafetensorsFile fixture_open(const char *name);

// The tensor prefix + name as doubles, which the caller frees; a name that the fixture lacks ends the test.
double *fixture_values(const SafetensorsFile *file, const char *prefix, const char *name);

// The first value of a tensor; and of the tensor "config." + name as a whole number.
double fixture_number(const SafetensorsFile *file, const char *name);
int64_t fixture_size(const SafetensorsFile *file, const char *name);

// The shape that the fixture's "config." numbers describe.
ModelConfig fixture_config(const SafetensorsFile *file);

// The tokens of a tensor [sequences, seq_len], which the caller frees.
int32_t *fixture_tokens(const SafetensorsFile *file, const char *name, int64_t *sequences, int64_t *seq_len);

// A flat buffer in the table's layout from the tensors of that prefix; the caller frees it.
double *fixture_parameters(const SafetensorsFile *file, const ParameterTable *table, const char *prefix);
