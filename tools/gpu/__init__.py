"""`sh tools/gpu.sh`: the steps of the first minutes on a GPU (steps.py, second.py), what runs them (run.py) and what is written (report.py)."""
