"""Hosts to measure on: each has its directories and its configuration below one of its own."""

from pathlib import Path

from underlay.config import Config, parse_config


def configuration(directory: Path, name: str) -> Config:
    """A host with a base cache, which may fetch the files of ``directory``."""
    make_directories(directory, name)
    return parse_config(base_toml(directory, name), origin=directory / name / "underlay.toml")


def make_directories(directory: Path, name: str) -> None:
    """The directories of such a host."""
    for part in ("base", "instances"):
        (directory / name / part).mkdir(parents=True, exist_ok=True)


def configuration_file(directory: Path, name: str) -> Path:
    """The same, written down for a process of its own."""
    file = configuration(directory, name).instances.with_name("underlay.toml")
    file.write_text(base_toml(directory, name), encoding="utf-8")
    return file


def base_toml(directory: Path, name: str) -> str:
    """What `configuration` says."""
    root = directory / name
    return f"""
        [instances]
        path = "{root}/instances"
        [caches.base]
        kind = "base"
        path = "{root}/base"
        [sources.file]
        allowed_paths = ["{directory}"]
    """


def masters(root: Path, *, revalidate_after: str = "1h") -> Config:
    """A host without instances, with a cache of masters in ``root / "masters"`` that go when nobody used them for a day."""
    for part in ("masters", "instances"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "instances.json").write_text("[]", encoding="utf-8")
    text = f"""
        [instances]
        path = "{root}/instances"
        inventory = "file:{root}/instances.json"
        [caches.masters]
        kind = "masters"
        path = "{root}/masters"
        ttl = "1d"
        [sources.http]
        revalidate_after = "{revalidate_after}"
    """
    return parse_config(text, origin=root / "underlay.toml")
