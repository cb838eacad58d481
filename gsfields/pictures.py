"""Renderings as files: PNG, MP4, depth in colours, and contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gsfields.files import written_whole

# Turbo (Mikhailov 2019) at nine even steps; between them colours are interpolated
_TURBO = torch.tensor(
    [[48, 18, 59], [70, 97, 214], [40, 163, 246], [26, 219, 180], [101, 249, 97],
     [201, 237, 52], [252, 170, 49], [226, 77, 13], [122, 4, 3]], dtype=torch.float32,
) / 255  # fmt: skip


def to_bytes(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of a float image [H, W, 3], clamped to [0, 1]."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def save_png(image: Tensor, path: str | Path) -> None:
    """Write an image [H, W, 3] in [0, 1], whole or not at all."""
    with written_whole(path) as temporary:
        Image.fromarray(to_bytes(image)).save(temporary, format="PNG")


def depth_colors(depth: Tensor, alpha: Tensor) -> Tensor:
    """Depth [H, W, 1] in colours [H, W, 3], near red and far blue, over the 2nd to 98th percentile of what is
    opaque.

    Faded to black where alpha [H, W, 1] is low.
    """
    opaque = depth[alpha > 0.5]
    if opaque.numel() == 0:
        return torch.zeros(*depth.shape[:2], 3)
    low, high = np.quantile(opaque.detach().cpu().numpy(), (0.02, 0.98))
    nearness = ((high - depth[..., 0]) / max(float(high - low), 1e-12)).nan_to_num().clamp(0, 1) * (
        len(_TURBO) - 1
    )
    below = nearness.floor().long().clamp(max=len(_TURBO) - 2)
    colors = torch.lerp(_TURBO[below], _TURBO[below + 1], (nearness - below)[..., None])
    return colors * alpha.clamp(0, 1)


def grey(mask: Tensor) -> Tensor:
    """A mask [H, W] as an image [H, W, 3]."""
    return mask[..., None].expand(*mask.shape, 3)


def contact_sheet(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], *, gap: int = 6) -> Tensor:
    """Images [H, W, 3] of one size in rows and columns under column titles, as one image [H', W', 3]."""
    height, width = rows[0][0].shape[:2]
    top = 16
    sheet = Image.new(
        "RGB", (len(rows[0]) * (width + gap) + gap, len(rows) * (height + gap) + gap + top), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), 3), title, fill=(0, 0, 0))
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet.paste(
                Image.fromarray(to_bytes(image)), (gap + c * (width + gap), top + gap + r * (height + gap))
            )
    return torch.from_numpy(np.asarray(sheet).copy()).float() / 255


def save_video(frames: Iterable[Tensor], path: str | Path, *, fps: int = 24) -> int:
    """Write images [H, W, 3] of one size as H.264 in MP4, whole or not at all; returns how many there were.

    An odd width or height loses its last column or row: the usual 4:2:0 colour needs even sizes.
    Raises ImportError where the package av is missing.
    """
    try:
        import av
    except ImportError:
        raise ImportError(
            "writing MP4 needs the package av (pip install av); PNG needs nothing more"
        ) from None
    count = 0
    with written_whole(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        for image in frames:
            pixels = to_bytes(image)
            pixels = np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
            if count == 0:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            count += 1
        container.mux(stream.encode(None))
    return count
