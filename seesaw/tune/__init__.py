"""Finds fast configurations of kernels for the card at hand (`seesaw tune`).

`units.py` says what is tuned, `trial.py` tries one configuration in a process of its own,
`trials.py` is the parent's side of it, `journal.py` keeps what was tried, `tuner.py` decides.
"""
