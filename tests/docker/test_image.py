"""The image is built for real and trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import images

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Images]:
    """A store with the built image, without the extras, which only take time."""
    images.require()
    made = images.Images(tmp_path_factory.mktemp("images"))
    try:
        made.make_base()
        made.build(ROOT / "docker" / "Dockerfile", ROOT, EXTRAS="")
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def container(store: images.Images) -> str:
    return store.start()


def test_the_image_runs_as_a_user_and_has_nothing_to_build_with(store, container):
    assert store.run(container, "id", "-u").strip() == "10001"
    assert store.run(container, "launcher", "--version").startswith("launcher ")
    for program in ("gcc", "c++", "/opt/launcher/bin/pip"):
        store.run(container, "sh", "-c", f"! command -v {program}")
    left = store.run(container, "sh", "-c", "ls -A /src /var/cache/pip /root 2>&1 || true")
    assert "pyproject.toml" not in left
    assert "http" not in left


def test_the_image_trains(store, container):
    # Without its pre-trained base, which takes a minute.
    words = ["experiment=quickstart", "model.recipe=null", "train.steps=3", "run.name=first"]
    limits = ["eval.limit=8", "eval.generate_limit=4", "eval.max_new_tokens=4", "train.threads=1"]
    done = store.run(container, "launcher", "train", *words, *limits)
    assert "succeeded" in store.run(container, "launcher", "status", "first"), done
    store.run(container, "test", "-f", "runs/first/export/adapter_model.safetensors")


def test_the_image_is_healthy(store, container):
    done = store.run(container, "launcher", "doctor", "--json")
    assert '"verdict": "fail"' not in done
