#include "cuda/launch.h"

unsigned emulated_order = 0;
int emulated_multiprocessors = 2;
