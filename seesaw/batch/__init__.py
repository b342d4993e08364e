"""Offline batch jobs in OpenAI's file format: read, check, run, keep, resume.

Knows an engine only through `protocol.BatchEngine`; imports no torch and no numpy. Start at
`job.run`.
"""
