"""Benchmarks: fan-out latency and cost, alone and side by side with other servers."""
