"""The ops of gsfields as Python functions: one thin wrapper each, its fake (meta) kernel and its gradient.

Everything else in the package reaches the native kernels through this package. Shapes: N Gaussians, B views,
C channels, H x W pixels, P sampled pixels, I (Gaussian, tile) pairs. All floating-point tensors of a call share one
dtype (float32 or float64) and one device; only values and images may be bfloat16 or float16 where the rest is float32.
Bad arguments raise ValueError with one sentence that names the argument.
Memory that runs out inside an op raises RuntimeError ("API call failed"), not its subclass torch.OutOfMemoryError.

On the CPU forward and backward are bit-identical over repeated runs and over any number of threads, for one
instruction set. On a GPU the forward is; the backward pass of blend(), and lift(), add in an order that varies, and so
do their last bits, except under torch.use_deterministic_algorithms(True), which is slower.
A Gaussian with a non-finite parameter or a zero quaternion is not drawn and receives zero gradients. A non-finite
value reaches at most the 4x4 block of pixels around a pixel that its Gaussian touches; on a GPU that pixel alone, but
with many channels all of the 8x8 patch around it.
"""

from gsfields.ops.blending import PRECISIONS as PRECISIONS
from gsfields.ops.blending import SampledPixels as SampledPixels
from gsfields.ops.blending import blend as blend
from gsfields.ops.blending import last_blended as last_blended
from gsfields.ops.blending import lift as lift
from gsfields.ops.blending import sample_pixels as sample_pixels
from gsfields.ops.blending import seen_pairs as seen_pairs
from gsfields.ops.contrast import contrast as contrast
from gsfields.ops.geometry import bin_tiles as bin_tiles
from gsfields.ops.geometry import project as project
from gsfields.ops.geometry import spherical_harmonics as spherical_harmonics
from gsfields.ops.geometry import spherical_harmonics_split as spherical_harmonics_split
from gsfields.ops.image import ssim_map as ssim_map
from gsfields.ops.library import TILE as TILE
from gsfields.ops.library import available_cpu_isas as available_cpu_isas
from gsfields.ops.library import cpu_isa as cpu_isa
from gsfields.ops.library import set_cpu_isa as set_cpu_isa
from gsfields.ops.motion import pose_of as pose_of
from gsfields.ops.motion import respond as respond
from gsfields.ops.rows import adam_rows as adam_rows
from gsfields.ops.rows import follow_rows as follow_rows
from gsfields.ops.rows import sum_bags as sum_bags
