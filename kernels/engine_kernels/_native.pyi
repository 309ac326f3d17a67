from typing import Any

import numpy as np

def all_finite(data: np.ndarray[Any, Any], dtype: int) -> bool: ...
