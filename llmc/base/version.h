// What this program calls itself, in what it prints and in what it writes.
#pragma once

#define PROGRAM_NAME    "train_lighthouse"
#define PROGRAM_VERSION "0.1.0"
