#include "cuda/launch.h"

unsigned emulated_order = 0;
