"""What CUDA does besides computing: streams, and copies of many pieces at once.

Knows addresses and bytes, not what they mean. Nothing here is imported without a GPU but the
protocols in `streams`.
"""
