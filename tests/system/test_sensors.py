"""The device's sensors, read from trees of files as Linux lays them out."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from adafocus_edge.system import sensors
from adafocus_edge.system.sensors import SensorReader, Sensors, read_sensors

NOTHING = Sensors(None, None, None, None, None)


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / "sys" / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def rails(chip: str, *entries: tuple[str, int, int]) -> dict[str, object]:
    """An INA3221: label, millivolts and milliamperes per channel, and the voltages over the shunts behind these."""
    files: dict[str, object] = {f"{chip}/name": "ina3221", f"{chip}/curr4_input": 9999, f"{chip}/in7_input": 50}
    for number, (label, millivolts, milliamperes) in enumerate(entries, 1):
        files |= {
            f"{chip}/in{number}_label": label,
            f"{chip}/in{number}_input": millivolts,
            f"{chip}/curr{number}_input": milliamperes,
            f"{chip}/in{number + 3}_input": 12,
        }
    return files


def test_a_system_that_tells_nothing(tmp_path):
    assert read_sensors(tmp_path) == NOTHING
    tree(tmp_path, {"thermal/thermal_zone0/temp": "", "hwmon/hwmon0/temp1_input": "n/a", "hwmon/hwmon0/name": "x"})
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").mkdir(parents=True)  # cannot be read
    assert SensorReader(tmp_path).read() == NOTHING


def test_the_hottest_plausible_sensor_counts(tmp_path):
    tree(
        tmp_path,
        {
            "thermal/thermal_zone0/temp": 45_500,
            "thermal/thermal_zone0/type": "cpu-thermal",
            "thermal/thermal_zone1/temp": 100_000,
            "thermal/thermal_zone1/type": "PMIC-Die",
            "thermal/thermal_zone2/temp": -256_000,
            "thermal/cooling_device0/temp": 99_000,
            "hwmon/hwmon0/temp1_input": 61_234,
            "hwmon/hwmon0/temp1_crit": 105_000,
            "hwmon/hwmon0/name": "coretemp",
            "hwmon/hwmon1/temp1_input": 250_000,
        },
    )
    assert SensorReader(tmp_path).read() == Sensors(61.2, None, None, None, None)


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        # Orin Nano: all hangs below VDD_IN.
        (rails("hwmon/hwmon1", ("VDD_IN", 5000, 1500), ("VDD_CPU_GPU_CV", 5000, 600), ("VDD_SOC", 5000, 400)), 7.5),
        # AGX Orin: three rails side by side; on the second chip one that hangs below, and two that are not there.
        (
            rails("hwmon/hwmon1", ("VDD_GPU_SOC", 20_000, 300), ("VDD_CPU_CV", 20_000, 100), ("VIN_SYS_5V0", 5000, 800))
            | rails("hwmon/hwmon2", ("NC", 20_000, 5), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)),
            12.0,
        ),
    ],
)
def test_a_jetsons_rails(tmp_path, files, watts):
    tree(tmp_path, files | {"powercap/intel-rapl:0/name": "package-0", "powercap/intel-rapl:0/energy_uj": 5})
    assert SensorReader(tmp_path).read() == Sensors(None, watts, "module", None, None)


def test_meters_of_chips_add_up_but_a_batterys_does_not(tmp_path):
    tree(
        tmp_path,
        {
            "hwmon/hwmon0/name": "amdgpu",
            "hwmon/hwmon0/power1_average": 30_000_000,
            "hwmon/hwmon0/power1_input": 70_000_000,
            "hwmon/hwmon0/power1_cap": 200_000_000,
            "hwmon/hwmon1/name": "ina226",
            "hwmon/hwmon1/power1_input": 2_500_000,
            "hwmon/hwmon2/name": "BAT0",
            "hwmon/hwmon2/power1_input": 11_000_000,
            "hwmon/hwmon3/name": "ucsi_source",
            "hwmon/hwmon3/device/type": "USB",
            "hwmon/hwmon3/power1_input": 60_000_000,
            "power_supply/BAT0/power_now": 12_000_000,
        },
    )
    assert SensorReader(tmp_path).read() == Sensors(None, 32.5, "chips", None, None)
    tree(tmp_path, {"hwmon/hwmon4/name": "power_meter", "hwmon/hwmon4/power1_average": 120_000_000})
    assert SensorReader(tmp_path).read() == Sensors(None, 120.0, "system", None, None)


def test_the_processors_power_is_that_since_the_reading_before(tmp_path, monkeypatch):
    def counters(first, second):
        zone = "powercap/intel-rapl"
        tree(tmp_path, {f"{zone}:0/energy_uj": first, f"{zone}:1/energy_uj": second})

    tree(
        tmp_path,
        {
            "powercap/intel-rapl/enabled": 1,
            **{f"powercap/intel-rapl:{n}/max_energy_range_uj": 10_000_000_000 for n in (0, 1)},
            **{f"powercap/intel-rapl:{n}/name": f"package-{n}" for n in (0, 1)},
            "powercap/intel-rapl:0:0/name": "core",
            "powercap/intel-rapl:0:0/energy_uj": 123,
            "powercap/intel-rapl:2/name": "psys",
            "powercap/intel-rapl:2/energy_uj": 456,
        },
    )
    now_s = [100.0]
    monkeypatch.setattr(sensors.time, "monotonic", lambda: now_s[0])
    counters(1_000_000, 9_990_000_000)
    reader = SensorReader(tmp_path)
    assert reader.read() == NOTHING
    now_s[0] += 2
    counters(21_000_000, 20_000_000)  # 20 J; and 30 J over the end of the counter
    assert reader.read() == Sensors(None, 25.0, "cpu", None, None)
    now_s[0] += 0.01
    counters(22_000_000, 20_000_000)
    assert reader.read().power_w == 25.0, "too short for a new value"
    now_s[0] += 0.99
    assert reader.read().power_w == 1.0
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()  # as for all but root
    now_s[0] += 1
    assert reader.read() == NOTHING


def test_this_machine_is_read_without_an_error():
    first = read_sensors()
    assert first.temperature_c is None or 0 < first.temperature_c < 150
    before_s = time.process_time()
    for _ in range(20):
        read_sensors()
    assert time.process_time() - before_s < 5, "it is asked every second"


WITHOUT_NVML = """
import sys
sys.modules["pynvml"] = None
from adafocus_edge.system.sensors import read_sensors
print(read_sensors().gpu_power_w)
"""


def test_no_nvml_is_no_error():
    done = subprocess.run([sys.executable, "-c", WITHOUT_NVML], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.gpu
def test_a_gpu_tells_its_temperature_and_power():
    pytest.importorskip("pynvml")
    read = read_sensors()
    assert read.gpu_temperature_c is not None
    assert 0 < read.gpu_temperature_c < 120
    assert read.gpu_power_w is not None
    assert read.gpu_power_w > 0
