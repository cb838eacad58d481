"""Plans: one projection and one sort per view, then as many blends as you like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from gsfields import ops, outputs
from gsfields.lifting import Lifted
from gsfields.ops.blending import Precision, SampledPixels


class ProjectionCost(NamedTuple):
    """Estimates for Plan.blend_project(): the cheaper order, and the multiply-adds of both."""

    order: Literal["values", "image"]
    values: int
    image: int


class Plan:
    """Gaussians projected, culled and sorted for one view or B views, ready to blend any values.

    Everything that depends on geometry alone is computed once, in plan(); each blend() then walks the tile lists.
    All results are differentiable with respect to whatever the plan was made from. The lists cost 4 bytes per
    (Gaussian, tile) pair and 8 per tile; the projection costs 36 bytes per Gaussian and view in float32.

    Attributes (N Gaussians, B views):
        means2d: [B, N, 2] in pixels; depths: [B, N] camera z; conics: [B, N, 3]; opacities: [B, N];
        radii: [B, N, 2] int32 in pixels, 0 where culled;
        ids: [I] int32 and tile_offsets: [B * tiles + 1] int64, see ops.bin_tiles();
        width, height: image size in pixels.
    Without a batch (viewmats of shape [4, 4]) images lose their leading B; the attributes keep it, as B = 1.
    """

    def __init__(
        self,
        projected: tuple[Tensor, ...],
        width: int,
        height: int,
        *,
        batched: bool,
        absgrad: bool = False,
        lists: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """projected: what ops.project() returns; lists: what ops.bin_tiles() would, where it is known already."""
        self.means2d, self.depths, self.conics, self.opacities, self.radii = projected
        self.width, self.height = width, height
        self.batched = batched
        self.ids, self.tile_offsets = lists or ops.bin_tiles(
            self.means2d.detach(), self.depths.detach(), self.conics.detach(), self.opacities.detach(),
            self.radii, width, height,
        )  # fmt: skip
        self._absgrad_sink = torch.zeros_like(self.means2d).requires_grad_() if absgrad else None
        self._transmittance: Tensor | None = None

    @property
    def visible(self) -> Tensor:
        """[B, N] bool: inside the view and able to reach alpha 1/255 at some point of it."""
        return (self.radii > 0).all(-1)

    @property
    def absgrad(self) -> Tensor | None:
        """[B, N, 2] sum over pixels of |dL/dmeans2d|, after backward(); None before, or without absgrad=True."""
        return None if self._absgrad_sink is None else self._absgrad_sink.grad

    @property
    def requires_grad(self) -> bool:
        """Whether gradients reach the geometry."""
        geometry = (self.means2d, self.depths, self.conics, self.opacities)
        return self._absgrad_sink is not None or any(t.requires_grad for t in geometry)

    # ---- blends -----------------------------------------------------------------------------------------------

    @overload
    def blend(
        self, values: Tensor, background: Tensor | None = None, *, layers: None = None,
        num_layers: int | None = None, pixels: Tensor | None = None, precision: Precision = "fp32",
    ) -> Tensor: ...  # fmt: skip
    @overload
    def blend(
        self, values: Tensor, background: Tensor | None = None, *, layers: Tensor,
        num_layers: int | None = None, pixels: Tensor | None = None, precision: Precision = "fp32",
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def blend(
        self, values: Mapping[str, Tensor], background: Mapping[str, Tensor] | None = None, *,
        layers: Tensor | None = None, num_layers: int | None = None, pixels: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> dict[str, Tensor]: ...  # fmt: skip
    def blend(
        self,
        values: Tensor | Mapping[str, Tensor],
        background: Tensor | Mapping[str, Tensor] | None = None,
        *,
        layers: Tensor | None = None,
        num_layers: int | None = None,
        pixels: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Composites values [N, C] (or one set per view, [B, N, C]) into an image [H, W, C] ([B, H, W, C]).

        Args:
            values: any C >= 1; the geometry's dtype, or bfloat16 or float16 where that is float32, and so is the image.
                A mapping of names to such values gives a dict of images under the same names.
            background: [C] (or [B, C]), seen through the remaining transmittance; for a mapping a mapping, in which
                names may be missing.
            layers: the layer of each Gaussian, integers [N] from 0, or below 0 for none. Adds masks [H, W, L], how
                much of a pixel each layer shows: as (image, masks), or under the name "layers". Where every Gaussian
                has a layer they add up to alpha.
            num_layers: L, where the largest id may be absent; it also spares the host a wait for the ids.
            pixels: columns x and rows y, integers [P, 2] ([B, P, 2]): blend these only, at a cost in proportion to
                the tiles they lie in. Images are then [P, C] ([B, P, C]), in the order of the pixels.
            precision: of the products over many channels on a GPU, see ops.blend().

        Outputs that are narrow enough to be copied faster than the lists are walked share a walk (outputs.walks()
        decides); their images are views of one tensor. Raises ValueError for wrong shapes, dtypes or devices.
        """
        asked = outputs.collect(values, background, self.depths)
        if layers is not None:
            if any(output.name == outputs.LAYERS for output in asked):
                raise ValueError(
                    'values has the name "layers", which is that of the masks where layers are given'
                )
            masks = outputs.membership(layers, num_layers, self.depths.shape[1]).to(self.depths.dtype)
            asked.append(outputs.Output(outputs.LAYERS, masks, None))
        if not asked:
            raise ValueError("values is empty, but must hold at least one output")
        sampled = None if pixels is None else self._sample(pixels)
        images: dict[str, Tensor] = {}
        for together in outputs.walks(asked, self._pairs_walked(sampled)):
            images |= self._walk(together, sampled, precision)
        if isinstance(values, Tensor):
            return images[""] if layers is None else (images[""], images[outputs.LAYERS])
        return {output.name: images[output.name] for output in asked}

    def layers(self, ids: Tensor, num_layers: int | None = None) -> Tensor:
        """How much of a pixel each layer shows, [H, W, L] ([B, H, W, L]); arguments as `layers` of blend()."""
        return self.blend({}, layers=ids, num_layers=num_layers)[outputs.LAYERS]

    def blend_project(
        self,
        values: Tensor,
        matrix: Tensor,
        background: Tensor | None = None,
        *,
        order: Literal["auto", "values", "image"] = "auto",
        precision: Precision = "fp32",
    ) -> Tensor:
        """blend(values, background) @ matrix, [H, W, M] ([B, H, W, M]), for a matrix [C, M].

        The matrix is applied to the values before the blend, or to the image after it, whichever projection_order()
        tells is cheaper, or as `order` says. background is [C] (or [B, C]): what the matrix is still to be applied to.
        """
        outputs.collect(values, background, self.depths)
        if matrix.dim() != 2 or matrix.shape[0] != values.shape[-1] or matrix.shape[1] == 0:
            raise ValueError(
                f"matrix has shape {list(matrix.shape)}, but must be [C={values.shape[-1]}, M] with M >= 1"
            )
        if matrix.dtype != values.dtype:
            raise ValueError(
                f"matrix has dtype {matrix.dtype}, but values have {values.dtype}, and both must be the same"
            )
        if order not in ("auto", "values", "image"):
            raise ValueError(f"order is {order!r}, but must be 'auto', 'values' or 'image'")
        if order == "auto":
            order = self.projection_order(*matrix.shape, per_view=values.dim() == 3).order
        if order == "image":
            return self.blend(values, background, precision=precision) @ matrix
        if background is not None:
            background = background.to(self.means2d.dtype) @ matrix.to(self.means2d.dtype)
        return self.blend(values @ matrix, background, precision=precision)

    def projection_order(self, channels: int, projected: int, *, per_view: bool = False) -> ProjectionCost:
        """What blend_project() does with a matrix [channels, projected], and why: the multiply-adds of either order.

        "values" first: rows · C · M + walk · M; "image" first: walk · C + pixels · C · M. Here rows is N (B · N with
        per_view), and walk is pairs · 256, which counts each pair for all pixels of its tile: the lists know no better.
        """
        views, count = self.means2d.shape[:2]
        walk = self._pairs * ops.TILE**2
        product = channels * projected
        values = (views if per_view else 1) * count * product + walk * projected
        image = walk * channels + views * self.width * self.height * product
        return ProjectionCost("values" if values <= image else "image", values, image)

    @property
    def alpha(self) -> Tensor:
        """Accumulated opacity 1 - T, [H, W, 1] ([B, H, W, 1])."""
        kept = self._transmittance
        # A blend under no_grad leaves a transmittance that gradients could not pass through.
        if kept is None or (
            torch.is_grad_enabled() and self.means2d.requires_grad and not kept.requires_grad
        ):
            self.blend(self.depths.new_ones(self.depths.shape[1], 1))
            kept = self._transmittance
        assert kept is not None
        return self._unbatch(1 - kept.unsqueeze(-1))

    def depth(self, mode: Literal["expected", "accumulated"] = "expected") -> Tensor:
        """Depth along the camera's z axis in world units, [H, W, 1] ([B, H, W, 1]).

        "accumulated": sum of weights times depths; "expected": the same divided by alpha, 0 where alpha is 0.
        """
        if mode not in ("expected", "accumulated"):
            raise ValueError(f"mode is {mode!r}, but must be 'expected' or 'accumulated'")
        image = self.blend(self.depths.unsqueeze(-1))
        if mode == "accumulated":
            return image
        # The smallest alpha of a pixel that anything touches is 1/255.
        return image / self.alpha.clamp_min(1e-6)

    # ---- back to the Gaussians --------------------------------------------------------------------------------

    def lift(
        self,
        image: Tensor,
        weights: Tensor | None = None,
        *,
        pixels: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> Lifted:
        """Hands an image back to the Gaussians it shows: sums [N, C] of Σ w f and total [N] of Σ w over the pixels.

        w is the weight that a Gaussian has in blend(), of which this is the adjoint: <blend(v), f> = <v, sums>.

        Args:
            image: f, [H, W, C] ([B, H, W, C]), any C >= 1 and any dtype that blend() takes; over the views of a batch
                it is summed.
            weights: of the pixels, by which w is multiplied, [H, W] ([B, H, W]), in the geometry's dtype.
            pixels: [P, 2] ([B, P, 2]) as in blend(); then image is [P, C] ([B, P, C]) and weights [P] ([B, P]).
            precision: see ops.blend().

        Returns (sums, total), of which .mean is the ratio. Differentiable in image, weights and the geometry.
        """
        sampled = None if pixels is None else self._sample(pixels)
        self._check_rows("image", image, pixels, 1)
        if weights is not None:
            self._check_rows("weights", weights, pixels, 0)
        rows = self._rows(image, sampled)
        factors = None if weights is None else self._rows(weights, sampled)
        return Lifted(
            *ops.lift(
                rows, self.means2d, self.conics, self.opacities, self.ids, self.tile_offsets,
                self.width, self.height, factors, sampled=sampled, precision=precision,
            )
        )  # fmt: skip

    # ---- parts of a plan --------------------------------------------------------------------------------------

    def only(self, mask: Tensor) -> Plan:
        """The Gaussians of a mask, bool [N], as if there were no others: from the same projection and sort.

        Gradients reach the same geometry; absgrad, where it is collected, that of both plans.
        """
        if mask.dtype != torch.bool or mask.shape != self.depths.shape[1:]:
            raise ValueError(
                f"mask has dtype {mask.dtype} and shape {list(mask.shape)}, but must be bool [N={self.depths.shape[1]}]"
            )
        part = Plan(
            (self.means2d, self.depths, self.conics, self.opacities, self.radii * mask.unsqueeze(-1)),
            self.width, self.height, batched=self.batched, lists=self._lists_of(mask),
        )  # fmt: skip
        part._absgrad_sink = self._absgrad_sink
        return part

    def narrowed(self, pixels: Tensor) -> tuple[Plan, Tensor]:
        """A plan of no more than the M Gaussians that some pixels see, and which of the N these are, int64 [M].

        A pixel sees what it blends, and that at which it stops. What depends on these pixels alone is the same, from
        values [M, C], and so is cheaper where there are many channels and few pixels: to the bit, but for the order of
        sums over many channels on a GPU. Gradients reach the same geometry, but absgrad is not collected.

        Args:
            pixels: as in blend().
        """
        with torch.no_grad():
            seen = ops.seen_pairs(
                self.means2d, self.conics, self.opacities, self.ids, self.tile_offsets,
                self.width, self.height, self._sample(pixels),
            )  # fmt: skip
            pairs = seen.nonzero()[:, 0]
            ids = self.ids[pairs]
            rank = torch.zeros(self.depths.shape[1], dtype=torch.int32, device=ids.device)
            rank[ids] = 1
            shown = rank.nonzero()[:, 0]
            rank[shown] = torch.arange(len(shown), dtype=torch.int32, device=ids.device)
            lists = rank[ids], torch.searchsorted(pairs, self.tile_offsets)
        everything = (self.means2d, self.depths, self.conics, self.opacities, self.radii)
        projected = tuple(of.index_select(1, shown) for of in everything)
        return Plan(projected, self.width, self.height, batched=self.batched, lists=lists), shown

    def isolated(self, ids: Tensor, num_layers: int) -> list[Plan]:
        """A plan for each layer alone, with its own transmittance; ids [N] as `layers` of blend()."""
        outputs.check_ids(ids, num_layers, self.depths.shape[1])
        return [self.only(ids == layer) for layer in range(num_layers)]

    # ---- steps ------------------------------------------------------------------------------------------------

    def _lists_of(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids and tile_offsets without the Gaussians that are not in a mask [N]."""
        kept = mask[self.ids]
        before = F.pad(kept.cumsum(0), (1, 0))  # of each pair, how many are kept
        return self.ids[kept], before[self.tile_offsets]

    def _walk(
        self, together: Sequence[outputs.Output], sampled: SampledPixels | None, precision: Precision
    ) -> dict[str, Tensor]:
        """The images of outputs that share a walk."""
        values, background = outputs.joined(together, self.means2d.dtype)
        image, transmittance = ops.blend(
            values, self.means2d, self.conics, self.opacities, self.ids, self.tile_offsets,
            self.width, self.height, background, self._absgrad_sink, sampled=sampled, precision=precision,
        )  # fmt: skip
        if sampled is None:
            self._transmittance = transmittance
        else:
            in_order = torch.empty_like(image).index_copy_(0, sampled.order, image)
            views = self.means2d.shape[0]
            image = in_order.reshape(views, len(image) // max(views, 1), image.shape[-1])
        image = self._unbatch(image)
        if len(together) == 1:
            return {together[0].name: image}
        # unsafe_: as split(), but the parts may be changed in place. Nobody else holds the whole.
        parts = torch.unsafe_split_with_sizes(image, [output.channels for output in together], -1)
        return {output.name: part for output, part in zip(together, parts)}

    @property
    def _pairs(self) -> int:
        """The length of the lists; a guess where a compiler does not know it."""
        return 2 * self.depths.numel() if torch.compiler.is_compiling() else len(self.ids)

    def _pairs_walked(self, sampled: SampledPixels | None) -> float:
        """How many pairs a walk passes; of sampled pixels, as many as if each lay in a tile of its own.

        No number where absgrad is collected: sums of |gradient| add up over pixels, but not over walks.
        """
        if self._absgrad_sink is not None:
            return math.inf
        if sampled is None:
            return self._pairs
        return self._pairs * min(1.0, len(sampled.pixels) / max(len(self.tile_offsets) - 1, 1))

    def _sample(self, pixels: Tensor) -> SampledPixels:
        if pixels.dim() != (3 if self.batched else 2):
            wanted = f"[B={self.means2d.shape[0]}, P, 2]" if self.batched else "[P, 2]"
            raise ValueError(f"pixels has shape {list(pixels.shape)}, but must be {wanted}")
        batch = pixels if self.batched else pixels.unsqueeze(0)
        return ops.sample_pixels(batch, self.means2d.shape[0], self.width, self.height)

    def _check_rows(self, name: str, image: Tensor, pixels: Tensor | None, channels: int) -> None:
        """Refuses what does not hold one row for every pixel, of one dimension more where it has channels."""
        rows = [self.height, self.width] if pixels is None else [pixels.shape[-2]]
        rows = [self.means2d.shape[0], *rows] if self.batched else rows
        if list(image.shape[: len(rows)]) != rows or image.dim() != len(rows) + channels:
            raise ValueError(
                f"{name} has shape {list(image.shape)}, but must be {[*rows, 'C'][: len(rows) + channels]}"
            )

    def _rows(self, image: Tensor, sampled: SampledPixels | None) -> Tensor:
        """An image as ops.lift() wants it."""
        image = image if self.batched else image.unsqueeze(0)
        return image if sampled is None else image.flatten(0, 1)[sampled.order]

    def _unbatch(self, image: Tensor) -> Tensor:
        # squeeze(): its gradient is a view, that of image[0] a copy.
        return image if self.batched else image.squeeze(0)


def plan(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
    antialiased: bool = False,
    absgrad: bool = False,
) -> Plan:
    """Projects and sorts Gaussians for one view (viewmats [4, 4], Ks [3, 3]) or B views ([B, 4, 4], [B, 3, 3]).

    The arguments are those of ops.project(); absgrad=True makes the plan collect Plan.absgrad. Raises ValueError
    for bad arguments.
    """
    if viewmats.dim() not in (2, 3) or Ks.dim() != viewmats.dim():
        raise ValueError(
            f"viewmats has shape {list(viewmats.shape)} and Ks {list(Ks.shape)}, but they must be [4, 4] and [3, 3], "
            "or [B, 4, 4] and [B, 3, 3]"
        )
    batched = viewmats.dim() == 3
    projected = ops.project(
        means, quats, scales, opacities,
        viewmats if batched else viewmats.unsqueeze(0), Ks if batched else Ks.unsqueeze(0),
        width, height, near=near, far=far, eps2d=eps2d, antialiased=antialiased,
    )  # fmt: skip
    return Plan(projected, width, height, batched=batched, absgrad=absgrad)
