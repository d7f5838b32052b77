"""The machine below: files, processor, sensors, console, the packages beside this one, names and secrets."""
