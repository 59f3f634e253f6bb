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

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
// Static: GCC 12's intrinsic says that it reads the first bytes only, and others would not be there.
constexpr Config EIGHT_FULL_TILES{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE}};

LCPO_AMX void configure() { _tile_loadconfig(&EIGHT_FULL_TILES); }
LCPO_AMX void release() { _tile_release(); }

}  // namespace

bool has_amx() {
  static const bool found = lcpo_has_product() && ask_for_amx();
  return found;
}

Amx::Amx() { configure(); }
Amx::~Amx() { release(); }

}  // namespace lcpo
#endif
