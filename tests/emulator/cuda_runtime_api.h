// What csrc/cuda includes of CUDA, so that g++ compiles the kernels and runs them on the CPU.
#pragma once

#include "emulator.h"
#include "intrinsics.h"
#include "vectors.h"
