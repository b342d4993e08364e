"""The verbs of the command line, one file each. A command checks its arguments, does its work
through `LLM`, `Engine` or a job, and prints; nothing else lives here.
"""
