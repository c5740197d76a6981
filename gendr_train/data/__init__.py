"""Photos -> batches of (original, damaged) crops, each a pure function of (seed, index)."""
