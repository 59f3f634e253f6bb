// Intel's intrinsics. GCC 12 takes the undefined registers in its own header for a mistake of those
// who call it (bug 105593).
#pragma once

#include "dot_tile.h"

#ifdef LCPO_BF16_DOT
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
