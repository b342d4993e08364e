"""Engines, real and simulated, under requests that come one after the other: what `seesaw bench
serve` and `seesaw bench policies` do. Loads no torch until a model is loaded."""
