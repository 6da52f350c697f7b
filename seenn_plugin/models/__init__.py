"""Networks for examples, benchmarks and checkpoints, as users of the frameworks write them.

They contain no early exit. Each module imports its framework; nothing here is imported by the core.
"""
