"""How fast the kernels are, against what, on which scenes. ``python -m benchmarks.kernels`` measures
everything.
"""
