"""The training loop that spiking networks and policy networks share: precision, checkpoints, monitoring.

Internal.
"""
