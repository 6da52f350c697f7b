"""Where a network keeps its state, what is known of it, and how to undo what was written.

Internal. Adapter authors find what they need of it in :mod:`seenn_plugin.adapter`.
"""
