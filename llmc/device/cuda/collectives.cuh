// Collectives of CUDA devices: Device.connect of a GPU.
#pragma once
#include "device/collectives.h"

Collectives *cuda_connect(Device *device, const Communicator *communicator);
