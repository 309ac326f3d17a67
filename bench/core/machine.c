/* What the processor itself can do, for bench/machine.py: fused multiply-adds in registers, and reading a buffer from end to end. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float Floats __attribute__((vector_size(BYTES)));
typedef uint64_t Words __attribute__((vector_size(BYTES), aligned(8)));
enum { CHAINS = 12 };

/* `steps` times CHAINS independent x = x * a + b of a whole register each; returns FLOPs done. */
double multiply_add(long steps, float *out) {
    Floats x[CHAINS], a, b;
    for (int c = 0; c < CHAINS; ++c)
        for (size_t i = 0; i < BYTES / sizeof(float); ++i) x[c][i] = (float)(c + (int)i), a[i] = 0.999f, b[i] = 0.001f;
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; ++c) x[c] = x[c] * a + b;
    }
    Floats sum = x[0];
    for (int c = 1; c < CHAINS; ++c) sum += x[c];
    memcpy(out, &sum, sizeof(float));
    return 2.0 * (double)steps * CHAINS * (BYTES / sizeof(float));
}

/* The exclusive or of `bytes` bytes, a multiple of 8 registers. */
uint64_t read_all(const void *data, size_t bytes) {
    const Words *words = (const Words *)data;
    Words x[8];
    memset(x, 0, sizeof x);
    for (size_t i = 0; i < bytes / BYTES; i += 8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) x[j] ^= words[i + (size_t)j];
    }
    uint64_t found = 0;
    for (int j = 0; j < 8; ++j)
        for (size_t i = 0; i < BYTES / 8; ++i) found ^= x[j][i];
    return found;
}
