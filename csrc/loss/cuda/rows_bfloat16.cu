// The kernels for logits in bfloat16.
#include "launch_rows.h"

UDSKD_FORMAT(BFloat16, bfloat16)
