// Lets the functions of this folder compile for the CPU by a C++ compiler, and for host and device by nvcc.
#pragma once

#ifdef __CUDACC__
#define FT_HOST_DEVICE __host__ __device__
#else
#define FT_HOST_DEVICE
#endif
