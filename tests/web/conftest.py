"""A service of the embedded model, asked as HTTP asks it."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from maskclip.emoji.scenes import draw_scene
from maskclip.web.app import create_app
from maskclip.web.asking import Limits
from maskclip.web.engine import Engine
from maskclip.web.models import Models

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def scene():
    """A drawn scene: (file of PNG, RGB array)."""
    image = draw_scene(3, size=96, objects=["cow"], grounds=["grass"]).image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue(), image


@pytest.fixture
def serve():
    """`serve(models=..., key=..., limits=..., files=..., **engine)`: a client of a new service."""
    clients = []

    def start(*, models=("emoji",), key=None, host="127.0.0.1", limits=None, files=None, **engine):
        app = create_app(
            Engine(Models(models, device="cpu"), **engine),
            limits=limits or Limits(),
            key=key,
            host=host,
            files=files,
        )
        client = TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)
        clients.append(client)
        client.__enter__()
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)
