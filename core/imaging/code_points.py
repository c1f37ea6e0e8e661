"""Colour profiles for the code points of ITU-T H.273, which PNG (`cICP`) and AVIF (`nclx`) have."""

import math
import struct
from functools import lru_cache

# Red, green and blue in XYZ, adapted to D50 (ICC.1, annex E).
_SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
_PRIMARIES = {
    1: _SRGB,
    9: ((0.6734, 0.2790, -0.0019), (0.1656, 0.6753, 0.0300), (0.1251, 0.0456, 0.7973)),  # BT.2020
    12: ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),  # P3
}
# Parametric curves (ICC.1, 10.18). The curves of video differ little from that of sRGB: they have
# the same one here.
_SRGB_CURVE = (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
_CURVES = {
    **dict.fromkeys((1, 6, 13, 14, 15), _SRGB_CURVE),
    4: (0, (2.2,)),
    5: (0, (2.8,)),
    8: (0, (1.0,)),
}
_PQ, _HLG = 16, 18
_TABLE_ENTRIES = 1_024  # of the curves of PQ and HLG
_REFERENCE_WHITE = 203  # candela a square metre (BT.2408): what is brighter becomes white
_WHITE = (0.9642, 1.0, 0.8249)


@lru_cache(maxsize=64)
def profile_of(primaries: int, transfer: int) -> bytes | None:
    """An ICC profile; None for sRGB, and for code points that no profile is known for."""
    points, curve = _PRIMARIES.get(primaries), _CURVES.get(transfer)
    if points is None or (points is _SRGB and curve is _SRGB_CURVE):
        return None
    if transfer in (_PQ, _HLG):
        light = _pq_light if transfer == _PQ else _hlg_light
        levels = (light(step / (_TABLE_ENTRIES - 1)) for step in range(_TABLE_ENTRIES))
        values = [round(65_535 * min(1.0, level / _REFERENCE_WHITE)) for level in levels]
        shape = b"curv" + struct.pack(f">II{_TABLE_ENTRIES}H", 0, _TABLE_ENTRIES, *values)
    elif curve is not None:
        kind, parameters = curve
        shape = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + _fixed(*parameters)
    else:
        return None
    tags = {b"wtpt": b"XYZ " + bytes(4) + _fixed(*_WHITE)}
    for colour, point in zip(b"rgb", points, strict=True):
        tags[bytes((colour,)) + b"XYZ"] = b"XYZ " + bytes(4) + _fixed(*point)
        tags[bytes((colour,)) + b"TRC"] = shape
    table, content, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(content), len(value))
        content += value
    size = 128 + len(table) + len(content)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*_WHITE)
    return head.ljust(128, b"\0") + table + content


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _pq_light(signal: float) -> float:
    """Candela a square metre of a PQ signal from 0 to 1 (SMPTE ST 2084; BT.2100, table 4)."""
    power = signal ** (32 / 2523)
    ratio = max(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)
    return float(10_000 * ratio ** (8192 / 1305))


def _hlg_light(signal: float) -> float:
    """The same of an HLG signal, on a display of 1,000 (BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = signal**2 / 3 if signal <= 0.5 else (math.exp((signal - c) / a) + b) / 12
    return float(1_000 * scene**1.2)
