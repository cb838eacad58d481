"""What `gsfields instances RUN` leaves: the objects of a run as files in RUN/instances.

- ids/<stem>.png: [h, w] the object of each pixel, 16 bits, 0 = none, on the grid of the photo as taken
- semantics/<stem>.png: its class, likewise
- objects/<id>.ply: the object's Gaussians, for any viewer
- objects.json: the table of objects: id, class, pixels, views, Gaussians and bounding box of each
- sheet.png: some views in rows: image, 2D segments, objects
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gsfields.data.segments import read_labels, write_ids
from gsfields.files import to_json, written_whole
from gsfields.gaussians import Gaussians
from gsfields.pictures import contact_sheet, save_png

FOLDER = "instances"  # of a run
MOST = 65535  # objects that 16 bits can number
_SHEET_WIDTH = 320  # of each image on the sheet, pixels
_TRIM = 0.01  # share of an object's Gaussians that each side of its box leaves out: a few always go astray


class ViewObjects(NamedTuple):
    """What one view shows. Views with an image get a row of the contact sheet."""

    stem: str
    ids: Tensor  # [h, w] integers, 0 = none, on the grid of the photo as taken
    semantics: Tensor | None = (
        None  # [h, w] integers; None: the classes of the objects, 0 where there is none
    )
    image: Tensor | None = None  # [H, W, 3] in [0, 1], of any size
    segments: Tensor | None = None  # [H', W'] the 2D segments that the fit was given, 0 = none


@dataclass(frozen=True)
class SceneObject:
    """A row of the table."""

    id: int
    class_id: int
    class_name: str  # empty if it has none
    pixels: int  # over all views
    views: int  # that show it
    gaussians: int
    box: list[list[float]] | None  # [2, 3] world units, least and greatest x, y, z of its Gaussians' centres


@dataclass(frozen=True)
class ObjectTable:
    """The objects of a run, in order of id."""

    objects: tuple[SceneObject, ...]

    def __len__(self) -> int:
        return len(self.objects)

    def __str__(self) -> str:
        rows = [["id", "class", "pixels", "views", "Gaussians", "bounding box"]]
        for o in self.objects:
            box = (
                "-"
                if o.box is None
                else " to ".join(", ".join(f"{c:.3g}" for c in corner) for corner in o.box)
            )
            name = o.class_name or str(o.class_id)
            rows.append([str(o.id), name, str(o.pixels), str(o.views), str(o.gaussians), box])
        widths = [max(map(len, column)) for column in zip(*rows)]
        aligned = [[cell.rjust(width) for cell, width in zip(row[:-1], widths)] + [row[-1]] for row in rows]
        return "\n".join("  ".join(row) for row in aligned)


@torch.no_grad()
def write_objects(
    run: str | Path,
    views: Iterable[ViewObjects],
    gaussians: Gaussians,
    gaussian_ids: Tensor,
    classes: Tensor,
    *,
    names: Mapping[int, str] | None = None,
) -> ObjectTable:
    """Write RUN/instances as the module says, one view at a time; each folder and file whole or not at all.

    Args:
        views: taken one by one; only what the sheet shows of them is kept, small.
        gaussians: N of them, of the whole scene.
        gaussian_ids: integers [N], the object of each, 0 = none.
        classes: integers [K], the class of each object: object k + 1 has entry k.
        names: of classes.

    Raises ValueError for other shapes or ids above K, FileNotFoundError if there is no such run.
    """
    count = _checked_count(gaussians, gaussian_ids, classes)
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run at {run}: there is no such folder")
    root = run / FOLDER
    root.mkdir(exist_ok=True)
    class_of = torch.cat((torch.zeros(1, dtype=torch.long), classes.cpu().long()))
    pixels, seen = torch.zeros(count + 1, dtype=torch.long), torch.zeros(count + 1, dtype=torch.long)
    rows: list[list[Tensor]] = []
    with ExitStack() as outputs:
        ids_folder, semantics_folder, ply_folder = (
            outputs.enter_context(written_whole(root / name)) for name in ("ids", "semantics", "objects")
        )
        for folder in (ids_folder, semantics_folder, ply_folder):
            folder.mkdir()
        for view in views:
            ids = _checked_ids(view, count)
            here = torch.bincount(ids.flatten(), minlength=count + 1)
            pixels, seen = pixels + here, seen + (here > 0)
            write_ids(ids_folder / f"{view.stem}.png", ids)
            semantics = class_of[ids] if view.semantics is None else view.semantics
            write_ids(semantics_folder / f"{view.stem}.png", semantics)
            if view.image is not None:
                rows.append(sheet_row(view, rows[0][0].shape if rows else None))
        members = _members(gaussian_ids, count)
        for k, index in enumerate(members, start=1):
            if len(index):
                gaussians.select(index).to_ply(ply_folder / f"{k}.ply")
    (root / "sheet.png").unlink(missing_ok=True)
    if rows:
        save_png(contact_sheet(rows, ["image", "2D segments", "objects"]), root / "sheet.png")
    table = ObjectTable(
        tuple(
            SceneObject(
                id=k,
                class_id=int(class_of[k]),
                class_name=(names or {}).get(int(class_of[k]), ""),
                pixels=int(pixels[k]),
                views=int(seen[k]),
                gaussians=len(index),
                box=bounding_box(gaussians.means[index]),
            )
            for k, index in enumerate(members, start=1)
        )
    )
    with written_whole(root / "objects.json") as temporary:
        temporary.write_text(to_json({"objects": [asdict(o) for o in table.objects]}, indent=1) + "\n")
    return table


def bounding_box(points: Tensor) -> list[list[float]] | None:
    """[2, 3]: least and greatest coordinates of points [M, 3] without a hundredth on each side; None if M is 0."""
    if len(points) == 0:
        return None
    ordered = points.detach().cpu().float().sort(dim=0).values
    skip = int(_TRIM * len(points))
    return [ordered[skip].tolist(), ordered[len(points) - 1 - skip].tolist()]


def _members(gaussian_ids: Tensor, count: int) -> list[Tensor]:
    """For each object the indices of its Gaussians, in order."""
    ids = gaussian_ids.long()
    order = ids.argsort(stable=True)
    sizes = torch.bincount(ids, minlength=count + 1).tolist()
    return list(order.split(sizes)[1:])


def _checked_count(gaussians: Gaussians, gaussian_ids: Tensor, classes: Tensor) -> int:
    """K."""
    if classes.ndim != 1 or len(classes) > MOST:
        raise ValueError(f"classes must be [K] with K at most {MOST}, but is {list(classes.shape)}")
    if gaussian_ids.shape != (len(gaussians),):
        raise ValueError(
            f"gaussian_ids must be [{len(gaussians)}] like the Gaussians, but is {list(gaussian_ids.shape)}"
        )
    _check_range("gaussian_ids", gaussian_ids, len(classes))
    return len(classes)


def _checked_ids(view: ViewObjects, count: int) -> Tensor:
    """The view's ids, int64 on the CPU."""
    if view.ids.ndim != 2:
        raise ValueError(f"the ids of view {view.stem} must be [h, w], but are {list(view.ids.shape)}")
    if view.semantics is not None and view.semantics.shape != view.ids.shape:
        raise ValueError(
            f"the semantics of view {view.stem} must be {list(view.ids.shape)} like its ids, "
            f"but are {list(view.semantics.shape)}"
        )
    _check_range(f"the ids of view {view.stem}", view.ids, count)
    return view.ids.cpu().long()


def _check_range(name: str, ids: Tensor, count: int) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, but are {ids.dtype}")
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) <= count):
        raise ValueError(
            f"{name} must lie in 0 to {count}, the number of objects, but span {ids.min()} to {ids.max()}"
        )


# -------------------------------------------------------------------------------------------------------- at a pixel


def parse_at(text: str) -> tuple[str, int, int]:
    """(stem, x, y) of "stem,x,y"; a stem may hold commas. Raises ValueError."""
    stem, *numbers = text.rsplit(",", 2)
    try:
        x, y = (int(number) for number in numbers)
    except ValueError:
        stem = ""
    if not stem:
        raise ValueError(f"a place in a view must be STEM,X,Y with X and Y in whole pixels, but is {text!r}")
    return stem, x, y


def object_at(run: str | Path, stem: str, x: int, y: int) -> int:
    """The object that a run shows at pixel (x, y) of the photo, from 0, x to the right and y down; 0 if none.

    Raises FileNotFoundError if the run has no objects or no such view, ValueError as `pick` does.
    """
    path = Path(run) / FOLDER / "ids" / f"{stem}.png"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.png"))
        some = (
            f"it has {known[0]} to {known[-1]}"
            if known
            else "`gsfields instances` writes the objects of a run"
        )
        raise FileNotFoundError(f"{run} has no objects for a view {stem}: {some}")
    return pick(torch.from_numpy(read_labels(path)), x, y)


def pick(ids: Tensor, x: int, y: int) -> int:
    """The id in a map [h, w] at pixel (x, y). Raises ValueError for a pixel outside."""
    height, width = ids.shape
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"pixel ({x}, {y}) lies outside the image, which is {width}x{height}")
    return int(ids[y, x])


# ----------------------------------------------------------------------------------------------------------- colours


def palette(count: int) -> Tensor:
    """[count + 1, 3] in [0, 1]: a colour for each of the ids 0 (black) to count, the same whatever the count.

    Hue, saturation and value follow an additive recurrence of low discrepancy in three dimensions (Roberts 2018,
    "R3"), so that neighbours in number are far apart, and all of any first colours well spread.
    """
    root = 1.2207440846057596  # of r⁴ = r + 1
    steps = torch.tensor([1 / root, 1 / root**2, 1 / root**3], dtype=torch.float64)
    hue, saturation, value = (torch.arange(count + 1)[:, None] * steps).frac().unbind(dim=1)
    saturation, value = 0.4 + 0.6 * saturation, 0.55 + 0.45 * value
    sector = (6 * hue[:, None] + torch.tensor([5.0, 3.0, 1.0])) % 6  # HSV to red, green, blue
    ramp = torch.minimum(sector, 4 - sector).clamp(0, 1)
    colors = value[:, None] * (1 - saturation[:, None] * ramp)
    colors[0] = 0
    return colors.float()


def id_colors(ids: Tensor) -> Tensor:
    """An id map [H, W] as an image [H, W, 3]."""
    ids = ids.cpu().long()
    return palette(int(ids.max()) if ids.numel() else 0)[ids]


def sheet_row(view: ViewObjects, shape: torch.Size | None = None) -> list[Tensor]:
    """Image, 2D segments and objects, [h, w, 3] each, of `shape` if given; the latter two over a darkened image."""
    assert view.image is not None
    height, width = view.image.shape[:2]
    small = min(width, _SHEET_WIDTH)
    size = [max(1, round(height * small / width)), small] if shape is None else list(shape[:2])
    image = interpolate(view.image.cpu().float().permute(2, 0, 1)[None], size, mode="area")[0].permute(
        1, 2, 0
    )
    grey = image.mean(dim=-1, keepdim=True)
    row = [image]
    for ids in (view.segments, view.ids):
        if ids is None:
            row.append(torch.ones_like(image))
            continue
        near = interpolate(ids.cpu().double()[None, None], size, mode="nearest-exact")[0, 0].long()
        colored = id_colors(near) * (0.5 + 0.5 * grey)
        row.append(torch.where((near > 0)[..., None], colored, 0.4 * grey.expand_as(image)))
    return row
