"""The engine's own scheduler and policies against a clock that the planner's cost model drives.

No tensor, no process, no device: what a workload would do on a machine, step by step.
"""
