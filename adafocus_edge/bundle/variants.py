"""The variants of a bundle: what each is made for, how it is made, and where it may run.

Adding a variant takes an entry in :data:`VARIANTS`, its recipe in ``calibration/variants.py``, and its line in the
manual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Hardware = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Variant:
    """One way to hold a model's four graphs.

    Attributes:
        name: its folder in a bundle, and its name in ``--variant``.
        purpose: its purpose, as reports print it.
        hardware: for which it is made; on other hardware it is measured only on request.
        recipe: how calibration makes it: a key of its recipes; None for the variant that export writes.
        exact_int8: whether it needs a device that adds 8-bit products exactly: a CPU that may not do so runs it in
            floats, slower.
        builds: whether TensorRT engines are built from it.
        one_scale: whether its recurrent graphs scale all rows of a batch by one number, taken from the batch itself, so
            that a row's results depend, a little, on the other rows.
    """

    name: str
    purpose: str
    hardware: tuple[Hardware, ...]
    recipe: Literal["int8", "fp16"] | None
    exact_int8: bool = False
    builds: bool = True
    one_scale: bool = False


VARIANTS = (
    Variant("fp32", "the reference", ("cpu", "gpu"), recipe=None),
    Variant("int8-cpu", "CPUs", ("cpu",), recipe="int8", builds=False, one_scale=True),
    Variant("int8-trt", "TensorRT", ("gpu",), recipe="int8", exact_int8=True),
    Variant("fp16", "TensorRT, CUDA", ("gpu",), recipe="fp16"),
)
REFERENCE = "fp32"
"""The variant that export writes, and that others are made from and compared with."""
VARIANT_PREFERENCE = (REFERENCE,)
"""The variants that ``--variant auto`` picks from, best first. Calibrated variants are chosen by name."""
CALIBRATED = tuple(variant.name for variant in VARIANTS if variant.recipe is not None)
"""Names of the variants that a calibration makes."""
BUILT_FROM = tuple(variant.name for variant in VARIANTS if variant.builds)
"""Names of the variants that TensorRT engines are built from."""
EXACT_INT8 = frozenset(variant.name for variant in VARIANTS if variant.exact_int8)
"""Names of the variants for devices that add 8-bit products exactly."""
ONE_SCALE = frozenset(variant.name for variant in VARIANTS if variant.one_scale)
"""Names of the variants whose rows of a batch are scaled together."""
PURPOSE = {variant.name: variant.purpose for variant in VARIANTS}
"""The purpose of each variant, by its name."""
RECIPE = {variant.name: variant.recipe for variant in VARIANTS}
"""How calibration makes each variant, by its name; None for the one that export writes."""
ON_CPU = tuple(variant.name for variant in VARIANTS if "cpu" in variant.hardware)
"""Names of the variants that are made for a CPU."""
