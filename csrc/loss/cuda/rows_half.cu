// The kernels for logits in half.
#include "launch_rows.h"

UDSKD_FORMAT(Half, half)
