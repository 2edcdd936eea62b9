"""The instruction sets the kernels are compiled for, and which of them a processor has, best first.

    avx512vnni  AVX2, and products by AVX-512: vpdpbusd and vpdpwssd on sixteen rows of weights at once
    avxvnni     AVX2, and products of whole numbers by the same two instructions, 256 bits wide
    avx2        AVX2 with FMA and half floats
    neon        64-bit ARM with dot products
    portable    whatever the compiler takes for granted; has no fast bodies

The VNNI variants are compiled with the flags of avx2: their instructions are in matmul/dot.h, matmul/dot512.h and
attention/whole_blocks.h alone, and nothing else may differ from what has been tested more. It knows nothing of compilers
beyond the names of their flags.
"""

from pathlib import Path

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
FLAGS: dict[str, tuple[str, ...]] = {
    "avx512vnni": (*_AVX2, "-DROADTRAIN_VNNI=512"),
    "avxvnni": (*_AVX2, "-DROADTRAIN_VNNI=256"),
    "avx2": _AVX2,
    "neon": ("-march=armv8.2-a+dotprod",),
    "portable": (),
}
# By the names /proc/cpuinfo has for them.
_NEEDS = {
    "avx512vnni": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "neon": {"asimddp", "atomics"},
    "portable": set[str](),
}
TESTED = ("avx2", "portable")  # run by the tests on the processors they run on; the others are checked when they are loaded


def runnable(cpuinfo: str) -> tuple[str, ...]:
    """The variants for a processor whose /proc/cpuinfo is given, best first; "portable" is always the last."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    features = next((set(value.split()) for name, _, value in lines if name.strip() in ("flags", "Features")), set[str]())
    return tuple(name for name, needs in _NEEDS.items() if needs <= features)


def here() -> tuple[str, ...]:
    """The variants for this processor, best first."""
    try:
        return runnable(Path("/proc/cpuinfo").read_text())
    except OSError:
        return runnable("")
