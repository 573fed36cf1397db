"""The machine code of compiled kernels for NVIDIA's GPUs, read with the tools that Triton brings.

The disassembler takes a fifth of a second to start and a few milliseconds for a kernel, so the code
of all kernels is read as one image.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

INSTRUCTION = 16  # bytes, since Volta


@dataclass(frozen=True)
class Code:
    """One kernel.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread.
        instructions: all of them, without their predicates.
        loop: those of the longest loop.
    """

    registers: int
    stack: int
    instructions: list[str] = field(default_factory=list)
    loop: list[str] = field(default_factory=list)


def read_code(cubins: Sequence[bytes], arch: int) -> list[Code]:
    """The code of kernels that were compiled for ``arch``, 90 for an H100."""
    found = [Code(*_usage(cubin)) for cubin in cubins]
    images = [_text(cubin) for cubin in cubins]
    starts = list(accumulate(map(len, images), initial=0))
    for address, instruction in _listing(b"".join(images), arch):
        kernel = bisect_right(starts, address) - 1
        code = found[kernel]
        code.instructions.append(instruction)
        target = re.match(r"BRA.*\b0x([0-9a-f]+)", instruction)
        if target and starts[kernel] <= int(target[1], 16) <= address:
            first = (int(target[1], 16) - starts[kernel]) // INSTRUCTION
            if len(code.instructions) - first > len(code.loop):
                code.loop[:] = code.instructions[first:]
    return found


def _tool(name: str, *flags: str | Path, content: bytes) -> str:
    """What a tool of Triton's says of a file with this content."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run([program, *flags, file.name], capture_output=True, check=True)
    return done.stdout.decode()


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack."""
    shown = _tool("cuobjdump", "--dump-resource-usage", content=cubin)
    used = dict(re.findall(r"(REG|STACK):(\d+)", shown))
    return int(used["REG"]), int(used["STACK"])


def _listing(image: bytes, arch: int) -> list[tuple[int, str]]:
    """Address and text of each instruction, branches with the addresses that they lead to."""
    # As Triton compiles: from the H100 on for one architecture and none behind it.
    name = f"SM{arch}a" if arch >= 90 else f"SM{arch}"
    shown = _tool("nvdisasm", "-b", name, "-c", "-ndf", content=image)
    line = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;")
    found = map(line.match, shown.splitlines())
    return [(int(code[1], 16), code[2]) for code in found if code]


def _text(cubin: bytes) -> bytes:
    """The instructions of the one kernel in a cubin, which is an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of a section: where its name stands, type, flags, address, and where it stands.
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    start = sections[names][4]
    (place,) = (s[4:6] for s in sections if cubin.startswith(b".text.", start + s[0]))
    return cubin[place[0] : place[0] + place[1]]
