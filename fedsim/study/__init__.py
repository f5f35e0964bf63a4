"""Comparison studies: methods x seeds x partitions x scenarios, paired, and what may be said of differences."""
