"""Networks, losses and gradients on this device against the reference vectors that ship."""

from __future__ import annotations

from collections.abc import Iterator

from sid_ray.commands.device.rows import DeviceRow, Rig, held_to
from sid_ray.commands.device.vectors import outcome_of, precisions_of, read_cases, relative


def verify_numbers(rig: Rig) -> Iterator[DeviceRow]:
    """A row a case and precision: of all that comes out, what is nearest to its bound, or beyond.

    The vectors were made in float64 on a CPU.
    """
    device = rig.first
    cases, expected = read_cases()
    for case in cases:
        for precision in precisions_of(case):
            found = outcome_of(case, device, precision)
            errors = {
                name: relative(value, expected[f"{case.name}/{name}"])
                for name, value in found.items()
            }
            bounds = case.bounds[precision]
            # One that is not finite is the worst: it compares as no larger number does.
            worst = max(errors, key=lambda n: (errors[n] != errors[n], errors[n] / bounds[n]))
            yield held_to(
                f"{case.name}, {precision}",
                f"relative error of the {worst}",
                errors[worst],
                bounds[worst],
                **{f"{name}: error": error for name, error in errors.items()},
            )
