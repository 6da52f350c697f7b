"""How one timestep of a model is made: by a call, by one pass of a loop in ``forward``, or by a multi-step call.

Internal. Adapter authors find what they need of it in :mod:`seenn_plugin.adapter`.
"""
