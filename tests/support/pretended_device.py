"""A device that is none: torch takes its tensors for those of an accelerator, and they are computed on the CPU.

They lie on `pretend:0`, where a tensor of the CPU beside them is refused as CUDA refuses it.  What keeps the host
waiting for the device is recorded, with the line of afterflow that asks for it.

It is torch's backend for devices that are written in Python (PrivateUse1).  A process that has switched it on has it
for good, and must not have computed a gradient before, so that tests with it run in a process of their own.

What no test with it can show: memory, streams and what is read too early, rounding, kernels, speed, torch.cuda.
torch.Generator(device="pretend") cannot be made from Python; what is drawn there comes from a generator of its own.
"""

import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import afterflow

NAME = "pretend"
MEMORY = 2**34
"""Bytes that the device says it has."""
PACKAGE = f"{Path(afterflow.__file__).parent}/"
aten = torch.ops.aten

NUMBER, SHAPE, TO_HOST, TO_DEVICE = "number", "shape", "to host", "to device"
WAITS = (NUMBER, SHAPE, TO_HOST, TO_DEVICE)
"""Why the host waits: it reads a number, the size of a result, or a tensor; or a copy is made from pageable memory."""
QUEUED = "queued"
"""A copy from pinned memory, for which the host does not wait."""


class Event(NamedTuple):
    """Something that the host waits for, or a copy that it does not wait for."""

    kind: str
    phase: str
    """step or loss, iteration outside of both, or around all of them."""
    unit: int
    """Number of the step, the loss or the iteration, in order."""
    line: str
    """The line of afterflow."""
    caller: str
    """The line of another library that was called there, if one was."""


# Functions whose frame tells a phase, and what in it is another one in each step, loss and iteration.
PHASES: dict[tuple[str, str], tuple[str, Sequence[str]]] = {
    ("sampling/rollout.py", "sample"): ("step", ("log_probs", "k")),
    ("train/gradients.py", "backward"): ("loss", ("microbatch", "loss")),
    ("train/loop.py", "train"): ("iteration", ("iteration",)),
}


class Recorder:
    """Notes events while it is on."""

    def __init__(self) -> None:
        self.events: list[Event] | None = None
        self.lock = threading.Lock()
        self.unit, self.last = 0, ("", [])

    def note(self, kind: str, frame: FrameType | None = None) -> None:
        """Note an event at the lines that are being run; `frame` is the innermost of them, None the caller's."""
        if self.events is None:
            return
        line, caller, key = "", "", ("around", [])
        frame = frame or sys._getframe(1)
        while frame is not None and key[0] == "around":
            name, file = frame.f_code.co_name, frame.f_code.co_filename
            if file.startswith(PACKAGE):
                file = file.removeprefix(PACKAGE)
                line = line or f"{file}:{frame.f_lineno} {name}"
                if (file, name) in PHASES:
                    phase, names = PHASES[file, name]
                    key = phase, [frame.f_locals.get(local) for local in names]
            elif not line and not caller and file != __file__ and "/torch/" not in file:
                caller = f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno} {name}"
            frame = frame.f_back
        with self.lock:
            if key[0] != self.last[0] or any(a is not b for a, b in zip(key[1], self.last[1])):
                self.unit, self.last = self.unit + 1, key
            self.events.append(Event(kind, key[0], self.unit, line or "a backward pass", caller))


recorder = Recorder()


@contextmanager
def recording() -> Iterator[list[Event]]:
    """Note events inside the context."""
    recorder.events = events = []
    try:
        yield events
    finally:
        recorder.events, recorder.last = None, ("", [])


class PretendedTensor(torch.Tensor):
    """A tensor of the device.  It holds the tensor of the CPU that its numbers are in."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, *args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendedTensor({self.held!r})"

    def tolist(self) -> list:  # torch's own reads the memory of the tensor
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it")
        return self.detach().cpu().numpy()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @property
    def data(self) -> Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "PretendedTensor") -> None:
        torch.Tensor.data.__set__(self, value)
        self.held = value.held


class Facts(NamedTuple):
    """What is known of an operation."""

    wait: str | None
    """Why the host waits for it on CUDA, whatever its operands."""
    indexes: bool
    takes_scalars: bool
    """Whether a tensor () of the CPU may stand beside tensors of the device."""
    draws: bool
    in_place: bool


@cache
def facts(op: Any) -> Facts:
    """Return what is known of an operation."""
    name, tags = op._schema.name.removeprefix("aten::"), op.tags
    if torch.Tag.inplace_view in tags and name not in ("resize_", "set_"):
        raise NotImplementedError(f"{op}: no test has needed it on the pretended device so far")
    indexes = name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
    reads = torch.Tag.data_dependent_output in tags
    wait = NUMBER if reads else SHAPE if torch.Tag.dynamic_output_shape in tags and not indexes else None
    fills = name.rstrip("_") in ("masked_fill", "fill", "index_fill")
    draws = any(option.name == "generator" for option in op._schema.arguments)
    return Facts(wait, indexes, torch.Tag.pointwise in tags or fills, draws, op._schema.is_mutable)


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of which a tensor lies on the device, or whose result will."""
    if op is aten.copy_.default:
        return copy(*args, **kwargs)
    known, operands, here = facts(op), Operands(), True
    taken = [operands.take(value) for value in args]
    options = {name: operands.take(value) for name, value in kwargs.items()}
    if kwargs.get("device") is not None:
        here, options["device"] = torch.device(kwargs["device"]).type == NAME, "cpu"
    if operands.host and operands.owners:
        check_devices(op, known, taken, operands.host)
    if known.draws and here:
        options["generator"] = own_generator(kwargs.get("generator"))
    if known.wait is not None:
        if kwargs.get("output_size") is None:
            recorder.note(known.wait)
    elif known.indexes:
        note_indexing(args)
    elif op is aten._to_copy.default and not here:
        recorder.note(TO_HOST)
    elif op is aten.where.self and operands.host:
        recorder.note(TO_DEVICE)
    return operands.give(op(*taken, **options), here)


class Operands:
    """The tensors of an operation."""

    def __init__(self) -> None:
        self.owners: dict[int, PretendedTensor] = {}
        self.host: list[Tensor] = []

    def take(self, value: Any) -> Any:
        """Return what an operation of the CPU takes in the place of an argument."""
        if type(value) is PretendedTensor:
            self.owners[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor):
            self.host.append(value)
        elif isinstance(value, (list, tuple)):
            return [self.take(part) for part in value]
        return value

    def give(self, value: Any, here: bool) -> Any:
        """Return a result, on the device if it is to be there; a tensor that was changed is its owner again."""
        if isinstance(value, Tensor):
            owner = self.owners.get(id(value))
            if owner is None:
                return PretendedTensor(value) if here else value
            if owner.shape != value.shape:  # one that was made empty, to be written to
                torch.Tensor.data.__set__(owner, PretendedTensor(value))
            return owner
        return type(value)(self.give(part, here) for part in value) if isinstance(value, (list, tuple)) else value


def check_devices(op: Any, known: Facts, taken: Sequence[Any], host: Sequence[Tensor]) -> None:
    """Raise RuntimeError where CUDA would not have these tensors of the CPU beside its own."""
    first = any(x is taken[0] for x in host)
    if known.indexes and first:
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    scalars = all(x.ndim == 0 for x in host)
    if known.indexes:
        allowed = not any(x is value and x.ndim for x in host for value in taken[2:3])
    else:
        allowed = known.takes_scalars and scalars and not (known.in_place and first)
    if not allowed:
        devices = f"at least two devices, {NAME}:0 and cpu!"
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices} ({op})")


def note_indexing(args: Sequence[Any]) -> None:
    """Note what the host waits for in indexing: the size of what a mask chooses, and indices from pageable memory."""
    indices = [x for x in args[1] if x is not None]
    # A mask that one number is written to needs no size.
    fills = len(args) > 2 and len(indices) == len(args[1]) == 1 and args[2].numel() == 1 and not any(args[3:])
    for x in indices:
        if type(x) is not PretendedTensor:
            recorder.note(TO_DEVICE)
        elif x.dtype in (torch.bool, torch.uint8) and not fills:
            recorder.note(SHAPE)


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy from one device to another, or on one."""
    there, here = (type(x) is PretendedTensor for x in (target, source))
    if there and not here:
        recorder.note(QUEUED if non_blocking and id(source) in pinned else TO_DEVICE)
    elif here and not there:
        if non_blocking:
            raise RuntimeError("a copy to the CPU that nobody waits for may be read before it is made")
        recorder.note(TO_HOST)
    to, of = (x.held if type(x) is PretendedTensor else x for x in (target, source))
    to.copy_(of)
    return target


pinned: "weakref.WeakValueDictionary[int, Tensor]" = weakref.WeakValueDictionary()
"""The tensors of the CPU in pinned memory."""


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """Stand in for Tensor.pin_memory."""
    if type(tensor) is PretendedTensor:
        raise RuntimeError("cannot pin a tensor of a device, only dense CPU tensors can be pinned")
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
        raise RuntimeError("unsupported operation: more than one element of the written-to tensor refers to a place")
    made = tensor.clone()
    pinned[id(made)] = made
    return made


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return what the device draws from.  RuntimeError for a generator of the CPU."""
    if generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    return Backend.generator


class Backend(_DummyBackendModule):
    """What `torch.pretend` is."""

    generator = torch.Generator()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_device_properties(self, device: Any) -> SimpleNamespace:
        return SimpleNamespace(total_memory=MEMORY)

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: Any = NAME) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = NAME) -> None:
        self.generator.set_state(state)

    def synchronize(self, device: Any = NAME) -> None:
        """Do nothing: nothing is queued here."""

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield


libraries: list[torch.library.Library] = []
"""What is registered stays so while these exist."""


def switch_on() -> torch.device:
    """Give this process the device, and make afterflow and accelerate choose it."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    of_all, of_aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    of_all.fallback(compute, "PrivateUse1")
    of_all.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    # torch.tensor(..., device=...) comes by here.
    of_aten.impl("_copy_from", lambda source, target, *options: copy(target, source, *options), "PrivateUse1")
    register_autocast(of_aten)
    libraries.extend([of_all, of_aten])
    torch.Tensor.pin_memory = pin_memory
    from accelerate.state import PartialState

    from afterflow.models import base

    device = torch.device(NAME, 0)
    PartialState.default_device = property(lambda self: device)
    base.default_device = lambda: device
    return device


def register_autocast(library: torch.library.Library) -> None:
    """Register the casts of mixed precision: those that torch's own header lists for CUDA."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    kernels = {"LOWER_PRECISION_FP": cast_down, "FP32": cast_up, "FP32_SET_OPT_DTYPE": sum_in_fp32}
    for name, kernel in kernels.items():
        listed = re.search(rf"#define AT_FORALL_{name}\(_\)((?:.*\\\n)+.*)", header)
        assert listed is not None
        for op, overload in re.findall(r"_\((\w+)(?:, (\w+))?\)", listed[1]):
            call = getattr(getattr(aten, op), overload or "default")
            library.impl(f"{op}.{overload}" if overload else op, partial(kernel, call), "AutocastPrivateUse1")


def outside_autocast() -> Any:
    """Return a context in which no operation is cast."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Bring the tensors of an argument to this precision, as far as they are floating-point and not fp64."""
    if isinstance(value, Tensor):
        eligible = type(value) is PretendedTensor and value.is_floating_point() and value.dtype != torch.double
        return value.to(dtype) if eligible else value
    return [cast(part, dtype) for part in value] if isinstance(value, (list, tuple)) else value


def cast_down(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Compute an operation in the lower precision."""
    dtype = torch.get_autocast_dtype(NAME)
    with outside_autocast():
        return op(*cast(args, dtype), **{name: cast(value, dtype) for name, value in kwargs.items()})


def cast_up(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Compute an operation in fp32."""
    with outside_autocast():
        return op(*cast(args, torch.float), **{name: cast(value, torch.float) for name, value in kwargs.items()})


def sum_in_fp32(op: Callable[..., Any], x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """Compute a sum with an fp32 result, where none is asked for and the numbers are of a lower precision."""
    lower = x.dtype in (torch.bfloat16, torch.float16)
    with outside_autocast():
        return op(x, *args, dtype=torch.float if dtype is None and lower else dtype, **kwargs)
