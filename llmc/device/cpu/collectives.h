// Collectives of CPU devices: Device.connect of the CPU.
#pragma once
#include "device/collectives.h"

Collectives *cpu_connect(Device *device, const Communicator *communicator);
