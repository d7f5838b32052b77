"""Temperature, power and energy of this device, from Linux's sysfs and NVIDIA's NVML."""

from __future__ import annotations

import importlib
import re
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PLAUSIBLE_C = (0.0, 150.0)
"""Range of accepted temperatures. Sensors that are switched off report values such as -256, and frost is no concern."""
FIXED_ZONES = frozenset({"pmic-die"})
"""Thermal zones of older Jetsons that always report 100 degrees."""
TOTAL_RAILS = frozenset({"vdd_in", "pom_5v_in", "5v_in"})
"""Power rails of a Jetson that supply the whole module; they feed all others."""
INNER_RAILS = frozenset({"nc", "vddq_vdd2_1v8ao"})
"""Labels of a Jetson's channels that are not connected, or that another rail feeds (AGX Orin)."""
SHORTEST_S = 0.2
"""Minimum time between two readings of an energy counter; within it, the previous power is returned."""


@dataclass(frozen=True)
class Sensors:
    """One reading; None for values that the system does not report.

    Attributes:
        temperature_c: temperature of the hottest sensor, in degrees Celsius.
        power_w: power of the part named by ``power_of``, in watts.
        power_of: ``module`` (a Jetson's rails), ``system`` (a meter of the whole machine), ``chips`` (the sum over
            chips with a meter, such as a GPU's), or ``cpu`` (RAPL: the processor's package).
        gpu_temperature_c: temperature of the hottest NVIDIA GPU, in degrees Celsius.
        gpu_power_w: power of all NVIDIA GPUs together, in watts; not part of ``power_w``.
    """

    temperature_c: float | None
    power_w: float | None
    power_of: str | None
    gpu_temperature_c: float | None
    gpu_power_w: float | None


class SensorReader:
    """Reads the sensors repeatedly; finds their files once. Safe to use from any thread.

    Args:
        root: root of the file system. NVML is used only with the real one, ``/``.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._lock = threading.Lock()
        classes = root / "sys" / "class"
        chips = [chip for chip in _listed(classes / "hwmon", "hwmon*") if not _is_supply(chip)]
        self._temperatures = [
            zone / "temp"
            for zone in _listed(classes / "thermal", "thermal_zone*")
            if _text(zone / "type").lower() not in FIXED_ZONES
        ]
        self._temperatures += [file for chip in chips for file in _listed(chip, "temp*_input")]
        self._rails = _rails([chip for chip in chips if _text(chip / "name") == "ina3221"])
        meters = {chip: _meters(chip) for chip in chips}
        self._system = [
            file for chip, files in meters.items() if _text(chip / "name") == "power_meter" for file in files
        ]
        self._chips = [
            file for chip, files in meters.items() if _text(chip / "name") != "power_meter" for file in files
        ]
        self._energies = _energies(classes / "powercap")
        self._energy: tuple[float, list[int]] | None = None
        self._cpu_w: float | None = None
        self._nvml = _nvml() if root == Path("/") else None

    def read(self) -> Sensors:
        """Read all sensors. The processor's power is the mean since the previous reading; the first one has none."""
        with self._lock:
            heats = [value / 1000 for file in self._temperatures if (value := _number(file)) is not None]
            heats = [heat for heat in heats if PLAUSIBLE_C[0] < heat < PLAUSIBLE_C[1]]
            power_w, power_of = self._power()
            gpu_c, gpu_w = self._gpu()
        return Sensors(
            round(max(heats), 1) if heats else None,
            None if power_w is None else round(power_w, 2),
            power_of,
            gpu_c,
            None if gpu_w is None else round(gpu_w, 2),
        )

    def _power(self) -> tuple[float | None, str | None]:
        """Return the power of the largest part of the machine that is measured, and the name of that part."""
        parts = [
            volts * amperes / 1e6
            for volts_file, amperes_file in self._rails
            if (volts := _number(volts_file)) is not None and (amperes := _number(amperes_file)) is not None
        ]
        if parts:
            return sum(parts), "module"
        if (system_w := _microwatts(self._system)) is not None:
            return system_w, "system"
        found: list[tuple[float, str]] = []
        if (chips_w := _microwatts(self._chips)) is not None:
            found.append((chips_w, "chips"))
        if (cpu_w := self._cpu_power()) is not None:
            found.append((cpu_w, "cpu"))
        return max(found, default=(None, None))

    def _cpu_power(self) -> float | None:
        now_s = time.monotonic()
        if not self._energies or (self._energy is not None and now_s - self._energy[0] < SHORTEST_S):
            return self._cpu_w
        read = [_number(file) for file, _ in self._energies]
        counts = [int(value) for value in read if value is not None]
        if len(counts) < len(read):  # only root may read them
            self._energies = []
            return None
        if self._energy is not None:
            before_s, before = self._energy
            used = [
                new - old if new >= old else new - old + range_uj  # the counter wrapped around
                for new, old, (_, range_uj) in zip(counts, before, self._energies, strict=True)
            ]
            self._cpu_w = sum(used) / 1e6 / (now_s - before_s)
        self._energy = now_s, counts
        return self._cpu_w

    def _gpu(self) -> tuple[float | None, float | None]:
        if self._nvml is None:
            return None, None
        nvml, gpus = self._nvml

        def readings(query: Callable[..., int], *arguments: Any) -> list[int]:
            values = []
            for gpu in gpus:
                with suppress(Exception):  # not every GPU has every sensor, and a GPU may have been removed
                    values.append(int(query(gpu, *arguments)))
            return values

        heats = readings(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        powers = readings(nvml.nvmlDeviceGetPowerUsage)
        return float(max(heats)) if heats else None, sum(powers) / 1000 if powers else None


class EnergyCounters:
    """Measures energy since its creation, by the counters of processors (RAPL) and of NVIDIA GPUs (NVML).

    Args:
        root: see :class:`SensorReader`.

    Attributes:
        of: ``cpu``, ``gpu``, ``cpu and gpu``, or empty without a counter (only root may read RAPL's on some systems).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [pair for pair in _energies(root / "sys" / "class" / "powercap") if _number(pair[0]) is not None]
        self._nvml = _nvml() if root == Path("/") else None
        self._gpu_began_mj = self._gpu_mj()
        self.of = " and ".join(
            name for name, found in (("cpu", self._files), ("gpu", self._gpu_began_mj is not None)) if found
        )
        self._before = [int(_number(file) or 0) for file, _ in self._files]
        self._cpu_uj = 0

    def joules(self) -> float | None:
        """Return the energy so far in joules, or None without a counter.

        Call it at least once per wrap-around of a counter, which takes minutes to hours.
        """
        if not self.of:
            return None
        now = [int(_number(file) or 0) for file, _ in self._files]
        for new, old, (_, range_uj) in zip(now, self._before, self._files, strict=True):
            self._cpu_uj += new - old if new >= old else new - old + range_uj
        self._before = now
        gpu_mj = self._gpu_mj()
        gpu_j = (gpu_mj - self._gpu_began_mj) / 1e3 if gpu_mj is not None and self._gpu_began_mj is not None else 0.0
        return self._cpu_uj / 1e6 + gpu_j

    def _gpu_mj(self) -> int | None:
        """Return the energy of all GPUs since their driver was loaded, in millijoules."""
        if self._nvml is None:
            return None
        nvml, gpus = self._nvml
        with suppress(Exception):  # older GPUs have no counter
            return sum(int(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) for gpu in gpus)
        return None


def read_sensors(root: Path = Path("/")) -> Sensors:
    """Read the sensors of this machine, or of one whose ``/`` is at ``root``; never raises, and takes milliseconds."""
    return _reader(root).read()


@lru_cache(maxsize=8)
def _reader(root: Path) -> SensorReader:
    return SensorReader(root)


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # a sensor that is switched off cannot be read
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(int(_text(file)))
    except ValueError:
        return None


def _microwatts(files: list[Path]) -> float | None:
    """Return the sum of meters in watts, or None if none can be read."""
    values = [value for file in files if (value := _number(file)) is not None]
    return sum(values) / 1e6 if values else None


def _is_supply(chip: Path) -> bool:
    """Return whether a chip is a battery or an adapter, whose power is not the machine's, or repeats a thermal zone."""
    return (
        bool(_text(chip / "device" / "type")) or re.fullmatch(r"(BAT|ACAD|AC|ADP)\d*", _text(chip / "name")) is not None
    )


def _meters(chip: Path) -> list[Path]:
    """Return a chip's power files, one per channel: the average where the chip reports both."""
    channels = {file.name.split("_")[0]: file for file in _listed(chip, "power*_input")}
    channels |= {file.name.split("_")[0]: file for file in _listed(chip, "power*_average")}
    return list(channels.values())


def _rails(chips: list[Path]) -> list[tuple[Path, Path]]:
    """Return the files of millivolts and milliamperes of those Jetson rails that add up to the module's power."""
    rails = {}
    for chip in chips:
        for number in (1, 2, 3):  # higher numbers are voltages over the shunts
            volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
            label = _text(chip / f"in{number}_label").lower()
            if volts.exists() and amperes.exists() and label not in INNER_RAILS:
                rails[volts] = label, amperes
    total = {volts: rail for volts, rail in rails.items() if rail[0] in TOTAL_RAILS}
    return [(volts, amperes) for volts, (_, amperes) in (total or rails).items()]


def _energies(powercap: Path) -> list[tuple[Path, int]]:
    """Return the energy counters of the processors' packages, each with its range; both in microjoules."""
    return [
        (zone / "energy_uj", int(_number(zone / "max_energy_range_uj") or 0))
        for zone in _listed(powercap, "intel-rapl:*")  # AMD's have this name, too; parts of a package have two colons
        if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")
    ]


def _nvml() -> tuple[Any, list[Any]] | None:
    """Return NVML and the handles of the GPUs, or None without a GPU; never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older package of this name warns that it is deprecated
            pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # the package, the driver or the GPU is missing or fails
        return None
    return (pynvml, gpus) if gpus else None
