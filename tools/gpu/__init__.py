"""`sh tools/gpu.sh`: the steps of the first minutes on a GPU (steps.py, second.py), their runner (run.py), what is written (report.py)."""
