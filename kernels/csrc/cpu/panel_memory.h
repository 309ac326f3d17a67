// Memory of packed matrices: large pages where the system has them, given back when a matrix goes.
#pragma once

#include <cstdint>
#include <memory>

namespace headcount::cpu {

// 64-byte aligned, contents undefined. Throws std::bad_alloc. Any thread may call, and let go.
std::shared_ptr<char> panel_memory(std::int64_t bytes);

}  // namespace headcount::cpu
