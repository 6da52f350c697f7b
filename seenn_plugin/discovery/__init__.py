"""Finds the state, the stem and the batch dimension of a model by running a few timesteps of a few rows.

Internal.
"""
