"""`python -m bench.suites.gpu.probe DEVICE SECONDS`: whether a device answers a trivial operation in time; exit status 0 where it does."""

from __future__ import annotations

import faulthandler
import sys

import torch

from bench.suites.gpu.child import die_with_the_parent

if __name__ == "__main__":
    die_with_the_parent()
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)  # by a thread of C: also where the driver never returns
    numbers = torch.arange(1000, device=sys.argv[1])
    if int((numbers + 1).sum()) != 500500:
        sys.exit("a sum on the device is wrong")
