#include "amx.h"

#include "api.h"

#ifdef LCPO_BF16_DOT
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lcpo {
namespace {

bool ask_for_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned both = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM: the kernel may refuse
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & both) != both) return false;
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};  // of tiles 0-7
  uint8_t rows[16] = {};

  constexpr Config() {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = TILE_LINE;
      rows[tile] = SIDE;
    }
  }
};

// In memory that is never written: GCC 12 tells the optimizer of its first 8 bytes only.
const Config FULL;

}  // namespace

bool has_amx() {
  static const bool found = lcpo_has_product() && ask_for_amx();
  return found;
}

Amx::Amx() { _tile_loadconfig(&FULL); }

Amx::~Amx() { _tile_release(); }

}  // namespace lcpo
#endif
