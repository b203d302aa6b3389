// The kernels for logits in float.
#include "launch_rows.h"

UDSKD_FORMAT(float, float)
