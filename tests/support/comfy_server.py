"""Starts a real ComfyUI on the CPU and talks to it over its own interface."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from pack import ROOT

START_TIMEOUT_S = 300
RUN_TIMEOUT_S = 300
PACK_FOLDER = "ComfyUI-GenDR"
Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return one node of a prompt; a link is written ``["node", output]``."""
    return {"class_type": class_type, "inputs": inputs}


class Server:
    """One running ComfyUI with the pack and the probe installed, in a base directory of its own."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        """Start it; ``base`` already holds the models."""
        self.base = base
        for folder in ("custom_nodes", "input", "output", "user"):
            (base / folder).mkdir(exist_ok=True)
        (base / "custom_nodes" / PACK_FOLDER).symlink_to(ROOT, target_is_directory=True)
        shutil.copy(Path(__file__).with_name("comfy_probe.py"), base / "custom_nodes" / "comfy_probe.py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = [
            "--cpu",
            "--port",
            str(port),
            "--base-directory",
            str(base),
            "--disable-auto-launch",
            "--disable-api-nodes",
        ]
        options += ["--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
        self.log = base / "server.log"
        with self.log.open("wb") as log:
            command = [sys.executable, str(comfyui / "main.py"), *options]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=comfyui)
        self._wait_until_up()

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: object) -> Any:
        """Send JSON and return the JSON that comes back, if any; a refusal (400) is returned too."""
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def queue(self, graph: Graph) -> str:
        """Queue a prompt and return its id."""
        answer = self.post("/prompt", {"prompt": graph})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def finished(self, prompt_id: str) -> dict[str, Any]:
        """Return the history of a prompt once it is done, failed or cancelled."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text(encoding="utf-8")[-2000:])

    def run(self, graph: Graph) -> dict[str, Any]:
        """Queue a prompt and return the ui output of every node that has one.

        Raises:
            RuntimeError: a node failed; the text is what the user sees.
        """
        entry = self.finished(self.queue(graph))
        for event, data in entry["status"]["messages"]:
            if event == "execution_error":
                raise RuntimeError(f"{data['node_type']}: {data['exception_message']}")
        return entry["outputs"]

    def floats(self, name: str) -> np.ndarray[Any, Any]:
        """Return what a ``ProbeSave`` node of that name was given."""
        return np.load(self.base / "output" / f"{name}.npy")

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
            else:
                return
        self.stop()
        raise RuntimeError(self.log.read_text(encoding="utf-8")[-2000:])
