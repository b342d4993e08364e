def build_info() -> dict[str, object]:
    """Keys `compiler` (str), `cxx_standard` (int), `cpu_features` (list of str)."""
