"""Which layouts a model should run in on a machine, from figures of the machine alone.

Standard library only: answers on a laptop what a model will do on machines that are elsewhere. Owns
what devices can do (`machines/`), what a step costs on them (`cost_model`), what fits (`memory`)
and the search over layouts (`search`). Nothing here runs or loads a model.
"""
