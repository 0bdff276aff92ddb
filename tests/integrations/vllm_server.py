"""Runs vLLM's OpenAI-compatible server with the plugin."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAME = "tiny"
BLOCK = 32  # tokens of a block of the prefix cache, the fewest that vLLM takes on a processor
START_SECONDS = 900.0  # three processes import torch and vLLM; there may be one processor
VLLM = str(Path(sys.executable).with_name("vllm"))


@contextmanager
def served(checkpoint: str, log: Path, budget: int, *options: str) -> Iterator[Any]:
    """Serve the model of a folder, called NAME, in float32; return a client of ``openai``."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(VLLM, "serve", checkpoint, "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-num-seqs", "8", "--enable-prompt-tokens-details", "--block-size", str(BLOCK)),
        *options,
    ]
    environment = {**os.environ, "CLASP_KERNELS_VLLM_BUDGET": str(budget)}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        found = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        end = time.monotonic() + START_SECONDS
        while not _is_up(found):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server did not start:\n{log.read_text()[-8000:]}")
            time.sleep(1)
        yield found
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_up(client: Any) -> bool:
    try:
        return bool(client.models.list().data)
    except Exception:
        return False


def pixels(image: Image.Image) -> dict[str, Any]:
    """Return a picture as a part of a message."""
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
