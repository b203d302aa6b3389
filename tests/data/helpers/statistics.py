"""What tests of random numbers draw and measure."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

MANY = np.arange(20_000)
SEEDS = st.integers(min_value=0, max_value=2**63 - 1)


def distance_to_cdf(samples: np.ndarray, cdf: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic times sqrt(n), from sorted samples and the CDF at them: it exceeds 2.3 once in
    20 000 tests."""
    n = len(samples)
    steps = np.arange(n + 1) / n
    return float(max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max()) * math.sqrt(n))
