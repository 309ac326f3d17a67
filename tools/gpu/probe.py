"""`python -m tools.gpu.probe`: whether the GPU still answers, by the driver alone: memory is taken, filled, copied back and given back."""

from __future__ import annotations

import ctypes
import sys

BYTES, FILL = 1 << 20, 0x5A


def main() -> None:
    if "--rehearse" in sys.argv:
        print("probe: no GPU is asked in a rehearsal")
        return
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    back = (ctypes.c_ubyte * BYTES)()

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            sys.exit(f"probe: {name} answers error {code}")

    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(BYTES))
    call("cuMemsetD8_v2", memory, ctypes.c_ubyte(FILL), ctypes.c_size_t(BYTES))
    call("cuCtxSynchronize")
    call("cuMemcpyDtoH_v2", back, memory, ctypes.c_size_t(BYTES))
    call("cuMemFree_v2", memory)
    if bytes(back) != bytes([FILL]) * BYTES:
        sys.exit("probe: the bytes that came back are others than were written")
    print("probe: the GPU answers")


if __name__ == "__main__":
    main()
