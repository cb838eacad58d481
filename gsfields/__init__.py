"""gsfields: Gaussian splatting for scenes that carry more than colour."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded at first use, so that `gsfields --help`, `gsfields doctor` and the config work without torch's start-up time.
_HOMES = {
    "Camera": "gsfields.camera",
    "Gaussians": "gsfields.gaussians",
    "Lifted": "gsfields.lifting",
    "Plan": "gsfields.plans",
    "PlanCache": "gsfields.plan_cache",
    "Rendering": "gsfields.rendering",
    "lift": "gsfields.lifting",
    "plan": "gsfields.plans",
    "render": "gsfields.rendering",
    "rasterization": "gsfields.gsplat_api",
    "load_dataset": "gsfields.data",
    "ops": "gsfields.ops",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from gsfields import ops as ops
    from gsfields.camera import Camera as Camera
    from gsfields.data import load_dataset as load_dataset
    from gsfields.gaussians import Gaussians as Gaussians
    from gsfields.gsplat_api import rasterization as rasterization
    from gsfields.lifting import Lifted as Lifted
    from gsfields.lifting import lift as lift
    from gsfields.plan_cache import PlanCache as PlanCache
    from gsfields.plans import Plan as Plan
    from gsfields.plans import plan as plan
    from gsfields.rendering import Rendering as Rendering
    from gsfields.rendering import render as render


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gsfields' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    value = module if name == "ops" else getattr(module, name)
    globals()[name] = value
    return value
