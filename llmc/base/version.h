// This program's name and version, as trainer.json records them.
#pragma once

#define PROGRAM_NAME    "train_lighthouse"
#define PROGRAM_VERSION "0.1.0"
