"""Fuzzing run configurations in YAML: what is taken must come back from its own YAML."""

import tempfile
from pathlib import Path

from fuzzing import Finding, Target

from mlx_pixword.config.run import PRESETS, make_config, read_yaml


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(data)
        config = make_config(read_yaml(path))
        path.write_text(config.to_yaml(), encoding="utf-8")
        if make_config(read_yaml(path)) != config:
            raise Finding("other", "a configuration is another one after it was written and read")


def seeds() -> list[bytes]:
    texts = [make_config({"preset": name}).to_yaml() for name in PRESETS]
    texts.append("steps: 5\ndata: [a.zip, 'b c']\ncache: null\nlearning_rate: 3e-4\npack: off\n")
    texts.append("# a comment\npreset: tiny\ndata:\n- a\n- b\nimages: ünï/x\nseed: 0x10\n")
    return [text.encode() for text in texts]


WORDS = (
    b"&a ", b"*a", b"<<: ", b"!!int ", b"!!float ", b"!!timestamp ", b"!!binary ", b"!!bool ",
    b"!!python/name:os.system ", b"2001-99-99", b"12:30:45", b"1" * 5000, b".inf", b".nan", b"-.inf", b"~", b"? ",
    b": ", b"- ", b"[" * 1200, b"{" * 1200, b"{a: 1}", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 9.9\n", b"\x00",
    b"\xff\xfe", b"\xc2\x85", b"'", b'"', b"0b", b"0x_", b"1_000", b"steps: ", b"data: ", b"rope_theta: ",
    b"preset: ", b"cache: ", b"\t", b"1e400", b"-0.0", b"a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\ndata: [*c,*c]\n",
)  # fmt: skip
TARGET = Target("yaml", seeds, check, WORDS)
