"""The notebook runs from top to bottom, with the interpreter of the tests and without a download."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
SECONDS = 600  # it takes half a minute where nothing else runs

# In a process of its own: warnings of Jupyter's libraries are no errors there.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="this-python").execute()
nbformat.write(notebook, sys.argv[2])
"""


def execute(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook in a folder; its outputs are left in ``folder/executed.ipynb``."""
    kernel = folder / "jupyter" / "kernels" / "this-python"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment |= {
        "JUPYTER_PATH": str(folder / "jupyter"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(folder / "ipython"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", EXECUTE, str(notebook), str(folder / "executed.ipynb")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def texts(notebook: nbformat.NotebookNode) -> str:
    """What the cells print and show as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_notebook_runs(tmp_path: Path) -> None:
    result = execute(NOTEBOOK, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) == 3
    shown_data = [output["data"] for cell in code for output in cell.outputs if "data" in output]
    pages = "".join(str(data.get("text/html")) for data in shown_data)
    for shown in ("confidence", "nats a pixel", "data:image/gif;base64,"):
        assert shown in pages
    for shown in ("PixWordModel(", "Processor(", "ImageTokens(28x12 pixels", "Batch(1 rows x"):
        assert shown in texts(executed)
    left = {path.name for path in tmp_path.iterdir()} - {"jupyter", "runtime", "ipython", "executed.ipynb"}
    assert not left


def test_a_cell_that_fails_would_be_noticed(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import mlx_pixword as pw\npw.nothing")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    result = execute(tmp_path / "broken.ipynb", tmp_path)
    assert result.returncode != 0
    assert "AttributeError" in result.stderr


def test_the_notebook_imports_the_package_first_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("import mlx_pixword as pw")
    assert NOTEBOOK.stat().st_size < 200_000
    assert "/tmp" not in texts(notebook)
