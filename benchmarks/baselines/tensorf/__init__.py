"""Contrastive Lift as a neural field in plain torch: TensoRF's factored grids for density and colour, and a network of
the position for instances. What the instance field on Gaussians is measured against.

    python -m benchmarks.baselines.tensorf DATA --out RUN --segments DIR --minutes 10

TensoRF: Chen et al., ECCV 2022. Contrastive Lift: Bhalgat et al., NeurIPS 2023, on the field of Panoptic Lifting
(Siddiqui et al., CVPR 2023), whose linear assignment takes the same network with one logit per identity. Where the
released code and the papers differ, the code is followed.

Made faster than the released code where that changes no result, so that speed is compared with the method and not with
its housekeeping: samples lie in one list and not in a padded grid, cells that cannot hold a visible sample are skipped,
and the density of a frozen field is read from one dense grid, which is exact (see fields.VectorMatrix).
"""
