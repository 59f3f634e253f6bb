// Memory of a thread that outlives a call: fetching and clearing fresh pages would take longer than
// what is done in it.
#pragma once

#include <cstdint>
#include <memory>

namespace lcpo {

// `size` entries with anything in them, of the calling thread, until its next call of this.
inline uint32_t* thread_room(int64_t size) {
  thread_local std::unique_ptr<uint32_t[]> memory;
  thread_local int64_t there = 0;
  if (size > there) {
    memory.reset();
    memory.reset(new uint32_t[size]);
    there = size;
  }
  return memory.get();
}

}  // namespace lcpo
