"""The table that `python -m mlx_pixword.plan` prints: names and values, in units that people read."""

from typing import Any

from .chips import Chip

Lines = list[tuple[str, str]]
PARTS = ("image_block", "language_block", "query_pixels", "head")
PREFIXES = ("", "k", "M", "G", "T", "P", "E")
TIMES = (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3), ("us", 1e-6))


def table(result: dict[str, Any], chip: Chip) -> Lines:
    """Lines of a result of `estimate.plan`: an empty name continues the line above, an empty value makes a heading."""
    return [
        *_run_lines(result, chip), *_count_lines(result), *_memory_lines(result, chip), ("", ""),
        *_training_lines(result), *_drawing_lines(result),
    ]  # fmt: skip


def _run_lines(result: dict[str, Any], chip: Chip) -> Lines:
    side, images = result["image_size"], result["images_a_step"]
    saving = ", recomputing to save memory" if result["recomputes"] else ""
    return [
        ("preset", result["preset"]),
        ("chip", f"{chip.name}: {chip.tflops:g} TFLOP/s (float32), {chip.bandwidth:g} GB/s, up to {chip.memory} GB"),
        ("image", f"{side}x{side}: {result['pixels']:,} pixels in {result['windows']:,} windows"),
        (
            "sequence",
            f"{result['elements']:,} elements: {result['windows']:,} windows, 3 marks, {result['words']:,} words",
        ),
        ("query pixels", f"{result['query_pixels']:,}"),
        ("a step", f"{images:,} image{'s' if images > 1 else ''}, {result['optimizer']}{saving}"),
    ]


def _count_lines(result: dict[str, Any]) -> Lines:
    total, full, pairs = result["forward_flops"], result["full_attention_pairs"], result["attention_pairs"]
    shares = [f"{part.replace('_', ' ')} {result[f'{part}_flops'] / total:.1%}" for part in PARTS]
    return [
        ("parameters", f"{result['parameters']:,}; {prefixed(result['model_bytes'])}B on disk"),
        ("attention pairs a layer", f"{prefixed(pairs)}; full attention has {full / pairs:,.0f} times as many"),
        ("forward, an image", f"{prefixed(total)}FLOP: {', '.join(shares[:2])},"),
        ("", ", ".join(shares[2:])),
        ("training, an image", f"{prefixed(result['training_flops'])}FLOP; "
                               f"about {prefixed(result['training_bytes'])}B moved"),
    ]  # fmt: skip


def _memory_lines(result: dict[str, Any], chip: Chip) -> Lines:
    memory = result["memory"]
    held = [f"{part} {binary(memory[part])}" for part in ("weights", "gradients", "optimizer", "activations")]
    spared = f"; {binary(memory['without_recomputation'])} without recomputing" if result["recomputes"] else ""
    fits = "fits" if result["fits"] else "does NOT fit"
    return [
        ("memory in training", f"about {binary(memory['total'])}{spared}"),
        ("", ", ".join(held)),
        ("", f"{fits} {chip.memory} GB, of which macOS leaves the GPU about {binary(chip.gpu_bytes)}"),
    ]


def _training_lines(result: dict[str, Any]) -> Lines:
    assumed, bound = result["assumed"], result["estimated_training_bound"]
    peak, bandwidth = f"{assumed['efficiency']:.0%}", f"{assumed['bandwidth_efficiency']:.0%}"
    return [
        ("ESTIMATED TIMES, from published figures. Nothing has ever been measured on Apple hardware.", ""),
        ("assumed", f"{peak} of the peak FLOP/s, {bandwidth} of the bandwidth, {assumed['kernel_us']:g} us a kernel"),
        (
            "training, an image",
            f"estimated {duration(result['estimated_training_seconds_an_image'])}, bound by {bound}",
        ),
        (f"training, {result['images']:,}", f"estimated {duration(result['estimated_training_seconds'])}"),
    ]


def _drawing_lines(result: dict[str, Any]) -> Lines:
    rows, size = [], f"{result['draw_width']}x{result['draw_height']}"
    for drawing in result["estimated_drawing"]:
        count, speed = drawing["at_once"], two_digits(drawing["pixels_a_second"])
        text = f"estimated {speed} pixels/s, {duration(drawing['seconds'])} for {count} of {size}"
        rows.append((f"drawing, {count} at once", f"{text}, bound by {drawing['bound']}"))
    noise = [] if result["query_pixels"] else [("", "trained without --pixel-queries, it would draw noise in windows")]
    return rows + noise


def prefixed(value: float) -> str:
    """About three digits and a decimal prefix: ``12.3 G``."""
    exponent = 0
    while value >= 999.5 and exponent < len(PREFIXES) - 1:
        value, exponent = value / 1000, exponent + 1
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {PREFIXES[exponent]}"


def binary(size: float) -> str:
    """Bytes in GiB, or in MiB below that, with a decimal below 100."""
    value, unit = (size / 2**30, "GiB") if size >= 2**30 else (size / 2**20, "MiB")
    return f"{value:,.{0 if value >= 99.95 else 1}f} {unit}"


def duration(seconds: float) -> str:
    """Two digits of the largest unit that leaves at least 1 of it."""
    name, size = next((unit for unit in TIMES if seconds >= unit[1]), TIMES[-1])
    return f"{two_digits(seconds / size)} {name}"


def two_digits(value: float) -> str:
    """Rounded to two digits, without an exponent."""
    rounded = float(f"{value:.1e}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.1f}"
