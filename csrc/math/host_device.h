// Arithmetic in this folder is written once: a C++ compiler takes it for the CPU, nvcc for both sides.
#pragma once

#ifdef __CUDACC__
#define FT_HOST_DEVICE __host__ __device__
#else
#define FT_HOST_DEVICE
#endif
