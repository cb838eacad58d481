"""`gsfields bench`: how long each stage takes on this machine. The comparison with baselines and peers is in the
source tree, under benchmarks/, and is made of the same parts.
"""
