"""NeuralDiff, NeRF-W and NeRF-T as neural radiance fields in plain torch, with Layered Motion Fusion: what the
layered Gaussians are measured against.

    python -m benchmarks.baselines.neuraldiff DATA --out RUN --model neuraldiff --minutes 10

NeuralDiff: Tschernezki, Larlus, Vedaldi, 3DV 2021. NeRF-W: Martin-Brualla et al., CVPR 2021. NeRF-T: a field that sees
the time, as EPIC Fields (Tschernezki et al., NeurIPS 2023) compares it. Fusion and test-time refinement: LMF
(Tschernezki et al., CVPR 2025). Where the released code and the papers differ, the code is followed.
"""
