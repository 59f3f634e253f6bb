#include "api.h"

LCPO_API int32_t lcpo_abi_version() { return LCPO_ABI_VERSION; }
