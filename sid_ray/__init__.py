"""sid_ray: elastic, exact distillation of diffusion models into one-step generators.

    import sid_ray

    result = sid_ray.distill("digits-sid", images=30_000, run="first")
    images = result.generator(range(16))  # uint8 [16, C, H, W]

What it offers is in api.py, which is imported when it is first asked for.
"""

TYPE_CHECKING = False  # as in typing, which would have to be imported
if TYPE_CHECKING:
    from sid_ray.api import (
        DistillConfig,
        Generator,
        Result,
        RunFailedError,
        UserError,
        distill,
        load_generator,
        recipe,
        recipe_names,
    )

__version__ = "0.1.0"
__all__ = [
    "DistillConfig",
    "Generator",
    "Result",
    "RunFailedError",
    "UserError",
    "distill",
    "load_generator",
    "recipe",
    "recipe_names",
]


def __getattr__(name: str) -> object:
    if name not in __all__:  # a module of this package, or nothing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sid_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
