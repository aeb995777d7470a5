#pragma once

/// Before functions that CPU and CUDA share.
#if defined(__CUDACC__)
#define FOVEA_HD __host__ __device__
#else
#define FOVEA_HD
#endif
