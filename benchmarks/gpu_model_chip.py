"""What the GPU model assumes of the chip: NVIDIA H100 SXM. Every constant stands here once.

Sources: NVIDIA H100 Tensor Core GPU Architecture (whitepaper): SMs, clock, dense matrix rates, HBM.
CUDA C++ Programming Guide, tables "Technical Specifications per Compute Capability" and "Throughput
of Native Arithmetic Instructions", column 9.0: limits of an SM and instruction rates.
Chips and Cheese, "Nvidia's H100: Funny L2, and Tons of Bandwidth" (2023, PCIe card with 114 SMs,
5.5 to 5.7 TB/s): L2 bandwidth and latencies, about 28 bytes per cycle and SM.
EFFICIENCY and LAUNCH_SECONDS are guesses until a device has run benchmarks/gpu_suite.sh.
"""

from __future__ import annotations

NAME = "H100 SXM"
SMS = 132
SCHEDULERS = 4  # per SM; each issues one warp instruction per cycle
CLOCK = 1.83e9  # Hz, boost clock of tensor work

REGISTERS = 65536  # per SM
REGISTERS_GRANULE = 256  # registers are given to a warp in such units
SHARED_MEMORY = 228 << 10  # bytes per SM
SHARED_MEMORY_RESERVED = 1 << 10  # bytes per CTA that the system keeps
THREADS = 2048  # per SM
CTAS = 32  # per SM

HBM = 3.35e12  # bytes per second
HBM_EFFICIENCY = 0.92  # of that, reached by a plain copy
L2 = SMS * 28 * CLOCK  # bytes per second
L2_CAPACITY = 50e6  # bytes
SHARED_MEMORY_RATE = 128  # bytes per cycle and SM, for all schedulers together

TF32_FLOPS = 494.7e12  # dense, per second
BF16_FLOPS = 989.4e12
FP32_FLOPS = 2 * 128 * SMS * 1.98e9  # FFMA, at the boost clock of other work

EFFICIENCY = 0.8  # of the tightest bound, reached by a kernel that this model describes
LAUNCH_SECONDS = 2.5e-6  # least time between the starts of two dependent kernels in a stream

# Cycles that one warp instruction keeps a scheduler's unit busy: 32 lanes / (lanes per cycle).
FMA, ALU, XU, FP64, TENSOR = "fma", "alu", "xu", "fp64", "tensor"
CYCLES = {FMA: 1, ALU: 2, XU: 8, FP64: 2}

# Latency in cycles of results that the hardware tracks with scoreboards.
LATENCY = {
    "shared": 30,
    "shuffle": 24,
    "global": 270,  # an L2 hit
    "xu": 22,
    "constant": 40,
    "barrier": 30,
    "tensor": 32,  # beyond the product's own cycles
    "other": 20,
}


def ctas_per_sm(registers: int, shared_memory: int, threads: int) -> int:
    """Return how many CTAs an SM holds at a time.

    Args:
        registers: Per thread, as the compiler reports them.
        shared_memory: Bytes per CTA.
        threads: Per CTA.
    """
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTERS_GRANULE) * REGISTERS_GRANULE
    warps_by_registers = REGISTERS // per_warp // SCHEDULERS * SCHEDULERS
    limits = (
        warps_by_registers // warps,
        SHARED_MEMORY // (shared_memory + SHARED_MEMORY_RESERVED),
        THREADS // (32 * warps),
        CTAS,
    )
    return min(limits)
