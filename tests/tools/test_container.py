"""The Dockerfile is one that can be built, and what its rehearsal makes of it."""

import os

import pytest

from tests.conftest import ROOT
from tools import container

TEXT = """# a comment
FROM python:3.13-slim AS packages
ARG TORCH=cpu
WORKDIR /opt/build
COPY requirements.txt ./
RUN --mount=type=cache,target=/opt/uv \\
    mkdir /opt/thing \\
    # a comment within
    && printf "%s" "got $TORCH" > /opt/thing/said && mkdir /opt/added && touch /opt/added/late
COPY src src

FROM python:3.13-slim
RUN useradd somebody
COPY --from=packages /opt/thing /opt/thing
COPY --from=packages /opt/added /opt/thing
ENV PATH=/opt/thing/bin:$PATH
USER 1000
HEALTHCHECK --timeout=5s CMD ["ask", "http://127.0.0.1:8000/healthz"]
CMD ["sh", "-c", "serve --port 8000 /home/somebody"]
"""
IGNORED = ["*", "!requirements.txt", "!src"]
PRESENT = {"requirements.txt", "src", "tests"}


def test_the_dockerfile_is_without_faults():
    steps = container.read((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert container.faults(steps, ignored, {path.name for path in ROOT.iterdir()}) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("USER 1000", "USER root", "USER: expected one that is not root"),
        ("USER 1000\n", "", "USER: expected one that is not root"),
        ("HEALTHCHECK", "LABEL", "HEALTHCHECK: missing"),
        ("COPY src src", "COPY sources src", "COPY sources: not in the repository"),
        ("COPY requirements.txt ./", "COPY src requirements.txt ./", "COPY src: expected after"),
        ("COPY src src", "COPY src tests ./", ".dockerignore: expected * and !requirements.txt"),
    ],
)
def test_faults_are_lines(before, after, said):
    found = container.faults(container.read(TEXT.replace(before, after)), IGNORED, PRESENT)
    assert any(one.startswith(said) for one in found), found
    assert container.faults(container.read(TEXT), IGNORED, PRESENT) == []


@pytest.mark.skipif(os.name == "nt", reason="images are of Linux, and so are their paths")
def test_steps_run_in_a_folder_of_their_own(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "src").mkdir(parents=True)
    (repository / "src" / "a.py").write_text("1")
    (repository / "requirements.txt").write_text("a==1")
    monkeypatch.setattr(container, "ROOT", repository)
    (tmp_path / "work").mkdir()
    rehearsal = container.Rehearsal(tmp_path / "work", tmp_path / "python", port=8123)
    for step in container.read(TEXT):
        rehearsal.take(step)
    before, image = tmp_path / "work" / "before" / "opt", tmp_path / "work" / "image" / "opt"
    assert (before / "build" / "src" / "a.py").read_text() == "1"
    assert (before / "build" / "requirements.txt").read_text() == "a==1"
    assert sorted(path.name for path in image.glob("**/*")) == ["late", "said", "thing"]
    assert (image / "thing" / "said").read_text() == "got "  # the build that the lock has
    assert rehearsal.environment()["PATH"].startswith(f"{image / 'thing' / 'bin'}:")
    assert rehearsal.health == ["ask", "http://127.0.0.1:8123/healthz"]
    home = image.parent / "home" / "somebody"
    assert rehearsal.command == ["sh", "-c", f"serve --port 8123 {home}"]
