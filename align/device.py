"""The one place that asks which device, which precision and how many threads."""

import os

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`: "cuda", "mps" or "cpu", or "auto" for the first of these that is there.

    Of several GPUs each process of a launcher (accelerate, torchrun) takes the one of its LOCAL_RANK.

    Raises:
        ValueError: An unknown name, or a device this machine does not have.
    """
    present = _present_devices()
    if name == "auto":
        name = present[0]
    if name not in ("cuda", "mps", "cpu"):
        raise ValueError(f"{name!r} is not a device. Use auto, cuda, mps or cpu.")
    if name not in present:
        raise ValueError(
            f"The device {name} was asked for, but this machine offers {', '.join(present)}. Use one of these, or auto."
        )
    return torch.device(name, _gpu_index()) if name == "cuda" else torch.device(name)


def pick_dtype(device: torch.device, mixed_precision: str = "auto") -> torch.dtype:
    """The precision of frozen weights for a `mixed_precision` of "no" (float32), "fp16" or "bf16".

    "auto" is bf16 on a GPU that has it, fp16 on an older one, and float32 elsewhere, where half precision is slow.

    Raises:
        ValueError: An unknown name, or bf16 on a GPU without it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if mixed_precision == "auto":
        mixed_precision = "no" if device.type != "cuda" else "bf16" if has_bf16 else "fp16"
    if mixed_precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise ValueError(
            f"This GPU ({torch.cuda.get_device_name(device)}) has no bf16. Use mixed_precision fp16 or no."
        )
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if mixed_precision not in dtypes:
        raise ValueError(f"{mixed_precision!r} is not a mixed_precision. Use auto, no, fp16 or bf16.")
    return dtypes[mixed_precision]


def set_threads() -> int:
    """Give this process its share of the machine's cores, and return how many threads that is.

    Launchers set OMP_NUM_THREADS to 1, and another number of threads gives other bits, so the number is set here, in
    one way: the environment variable ALIGN_NUM_THREADS, or else the cores this process may run on, divided by the
    processes of the run on this machine (LOCAL_WORLD_SIZE, which launchers set).

    Raises:
        ValueError: ALIGN_NUM_THREADS is not a positive whole number.
    """
    wish = os.environ.get("ALIGN_NUM_THREADS", "")
    if wish and not (wish.isdecimal() and int(wish) > 0):
        raise ValueError(
            f"ALIGN_NUM_THREADS is {wish!r}; it must be a whole number of at least 1. Correct or unset it."
        )
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = int(wish) if wish else max(1, _available_cores() // local_processes)
    torch.set_num_threads(threads)
    return threads


def _present_devices() -> list[str]:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_present in present.items() if is_present]


def _gpu_index() -> int:
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"Process {index} of this machine (from 0) has no GPU of its own: there are {count}. "
            f"Start at most {count} processes."
        )
    return index


def _available_cores() -> int:
    """Cores this process may use, where the system says so (Linux); otherwise all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
