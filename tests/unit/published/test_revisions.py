"""The command that prints the commits to pin asks the Hub for every repository, and says which it could not have."""

from __future__ import annotations

import pytest
from benchmarks import revisions
from tests.hub_server import Hub


@pytest.fixture
def two_repositories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "repositories", lambda: ["user/boxes", "user/depth"])


@pytest.mark.usefixtures("two_repositories")
def test_every_repository_has_a_line_with_its_commit(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = hub.repo("user/boxes", {"model.safetensors": b"boxes"})
    depth = hub.repo("user/depth", {"model.safetensors": b"depth"})

    code = revisions.main()

    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        f"user/boxes {boxes.resolve('main')}",
        f"user/depth {depth.resolve('main')}",
    ]


@pytest.mark.usefixtures("two_repositories")
def test_a_repository_that_is_gone_is_named_and_the_others_are_printed(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = hub.repo("user/depth", {"model.safetensors": b"depth"})

    code = revisions.main()

    printed = capsys.readouterr()
    assert code == 1
    assert printed.out.splitlines() == [f"user/depth {depth.resolve('main')}"]
    assert printed.err.startswith("user/boxes: ")


def test_the_repositories_are_those_of_the_tables() -> None:
    repositories = revisions.repositories()
    assert "facebook/dinov3-vitl16-chmv2-dpt-head" in repositories
    assert len(set(repositories)) == len(repositories) > 10
